"""The generation loop: ask an engine for the responses that are missing, and publish each complete shard.

All trajectories are published here, imported ones as well. A later attempt after a crash reuses the shards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from reval_core.atomic_files import digest, file_digest, publish_sealed, read_sealed
from reval_core.config import Rollouts
from reval_core.engines.engine import Engine, Enough
from reval_core.engines.response import Response
from reval_core.errors import CorruptData
from reval_core.pipeline.run_context import RunContext
from reval_core.problems import Problem
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND
from reval_core.stages.stage import Outcome
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import TableFile, publish_table

if TYPE_CHECKING:
    from reval_core.problems.recorded import Prompts

Group = list[Response]
"""The N responses to one prompt. They are published together, since rewards may be compared within a group."""

Generate = Callable[[Sequence[Response], Enough | None], Generator[tuple[int, Response]]]
"""Generates what is missing of each response; yields the index of a response and the response, extended."""


def new_group(problem: Problem, samples: Iterable[int], prompts: Prompts, seed: Callable[[Response], int]) -> Group:
    """These samples of responses to a problem, for which nothing has been generated yet."""
    prompt, tokens = prompts[problem.problem]
    identity = (problem.prompt_id, problem.problem, problem.answer, problem.gold_mode, problem.problem_set)
    return seeded([Response(*identity, sample, prompt, tokens) for sample in samples], seed)


def seeded(group: Group, seed: Callable[[Response], int]) -> Group:
    """The group with new seeds for what is left to generate.

    A response that was cut off needs another seed than before: with the old one the engine would reuse the random
    numbers of the first tokens for those after the cut.
    """
    return [one if one.is_complete else replace(one, seed=seed(one)) for one in group]


class Budget:
    """What a round may spend on generation. The clock starts at the first question."""

    def __init__(self, settings: Rollouts) -> None:
        self._tokens = settings.budget_tokens or math.inf
        self._seconds = settings.budget_seconds or math.inf
        self._started: float | None = None

    def is_used_up(self, tokens: int) -> bool:
        """Whether generation should stop after this number of tokens."""
        if self._started is None:
            self._started = time.monotonic()
        return tokens >= self._tokens or time.monotonic() - self._started >= self._seconds


class Shards:
    """The shards of a round under the key of its stage, including those of crashed attempts."""

    def __init__(
        self, directory: RunDirectory, round: int, key: str, *, writer: int | None = None, gapless: bool = False
    ) -> None:
        """Find the shards that earlier attempts have published under this key.

        Args:
            directory: The run directory.
            round: The round.
            key: The key of the stage.
            writer: The round of the policy that generates; tokens of other policies are not counted as generated.
            gapless: Whether to discard all shards after a missing one, since its replacement may differ in size.
        """
        self._directory = directory
        self._round = round
        self._key = key
        self._writer = writer
        self._notes: dict[int, dict[str, Any]] = {}
        """One record per shard: its file, the time that it took, and its groups."""
        self._partials: TableFile | None = None
        for path in sorted((directory.path / directory.shard(round, 0)).parent.glob("shard-*.json")):
            self._keep(path)
        if gapless:
            whole = set(takewhile(self._notes.__contains__, count()))
            self._notes = {number: note for number, note in self._notes.items() if number in whole}
        self._reused = len(self._notes)
        self._started = time.perf_counter()
        self._rest_seconds, self._rest_tokens = 0.0, 0

    @classmethod
    def of_engine(
        cls, directory: RunDirectory, round: int, key: str, engine: Engine, writer: int, otherwise: str
    ) -> Shards:
        """The shards of a round that an engine fills.

        Args:
            directory: The run directory.
            round: The round.
            key: The key of the stage.
            engine: The engine.
            writer: The round of the policy that generates.
            otherwise: What to do about a lost shard that cannot be restored, for the message.

        Raises:
            CorruptData: If a published shard is lost and the engine would not generate the same responses.
        """
        manifest = directory.manifest_path("rollouts", round)
        if engine.streams and directory.manifest("rollouts", round) is not None:
            raise CorruptData(
                f"{manifest.parent}: a shard is missing, and generation with engine {engine.name} is not "
                f"reproducible; restore the shard from a backup, or {otherwise}"
            )
        return cls(directory, round, key, writer=writer, gapless=engine.streams)

    def generate(
        self,
        groups: Mapping[int, Group],
        size: int,
        generate: Generate,
        rows: Callable[..., pa.Table],
        budget: Budget | None = None,
    ) -> dict[int, Group]:
        """Generate the groups that are in no shard yet, and publish each shard when it is complete.

        A shard contains `size` whole groups, those that finish first. Groups that the budget cuts off are published
        as partials. The budget cuts off nothing before the round has a complete group.

        Args:
            groups: The groups by number.
            size: The number of groups per shard.
            generate: The engine.
            rows: `response_table`, called with responses, `shard` and `first_id`.
            budget: What may be spent; None for no limit.

        Returns:
            The groups that were cut off.
        """
        assert self._writer is not None, "the policy is known"
        waiting = {number: [*group] for number, group in groups.items() if number not in self.groups()}
        missing = [
            (number, place)
            for number, group in waiting.items()
            for place, one in enumerate(group)
            if not one.is_complete
        ]
        ready: list[int] = []

        def is_enough(tokens: int) -> bool:
            assert budget is not None
            return budget.is_used_up(tokens) and bool(ready or self._notes)

        def publish() -> None:
            numbers = sorted(ready)
            done = [one for number in numbers for one in waiting.pop(number)]
            self.publish(lambda shard, first: rows(done, shard=shard, first_id=self._id(first)), numbers)
            ready.clear()

        requests = [waiting[number][place] for number, place in missing]
        with closing(generate(requests, is_enough if budget else None)) as generated:
            for index, response in generated:
                number, place = missing[index]
                waiting[number][place] = response.written_by(self._writer)
                if all(one.is_complete for one in waiting[number]):
                    ready.append(number)
                if len(ready) == size:
                    publish()
        if ready:
            publish()
        if waiting:
            cut_off = [one for group in waiting.values() for one in group]
            self.publish_partials(lambda first: rows(cut_off, shard=None, first_id=self._id(first)))
        return waiting

    def groups(self) -> set[int]:
        """The numbers of the groups in the published shards."""
        return {number for note in self._notes.values() for number in note["groups"]}

    def files(self, groups: int | None = None) -> list[TableFile]:
        """The published shards in order: all, or those of the first `groups` groups."""
        notes = [self._notes[number] for number in sorted(self._notes)]
        return [TableFile(**note["file"]) for note in notes if groups is None or max(note["groups"]) < groups]

    def restart_clock(self) -> None:
        """Exclude the time since the last shard from the generation time."""
        self._started = time.perf_counter()

    def publish(self, make: Callable[[int, int], pa.Table], groups: Sequence[int]) -> None:
        """Publish the next shard.

        Args:
            make: Called with the number of the shard and the index of its first row within the round; returns the
                rows.
            groups: The numbers of the groups in the shard.
        """
        number = next(number for number in count() if number not in self._notes)
        before = sum(note["file"]["rows"] for other, note in self._notes.items() if other < number)
        rows = make(number, before)
        file = publish_table(self._directory.path, self._directory.shard(self._round, number), "trajectories", rows)
        note = {
            "key": digest(self._key, number),
            "seconds": self._elapsed(),
            "tokens": self._generated(rows),
            "groups": list(groups),
            "file": asdict(file),
        }
        publish_sealed(self._note(number), note)
        self._notes[number] = note

    def publish_partials(self, make: Callable[[int], pa.Table]) -> None:
        """Publish groups that were cut off; their row indices follow those of the shards."""
        rows = make(sum(note["file"]["rows"] for note in self._notes.values()))
        path = Path(self._directory.shard(self._round, 0)).with_name("partials.parquet")
        self._partials = publish_table(self._directory.path, str(path), "partials", rows)
        self._rest_seconds, self._rest_tokens = self._elapsed(), self._generated(rows)

    def outcome(self, engine: str) -> Outcome:
        """The outcome of the stage: all shards in order, and the groups that were cut off."""
        notes = [self._notes[number] for number in sorted(self._notes)]
        info = {
            "generation_seconds": sum(note["seconds"] for note in notes) + self._rest_seconds,
            "generated_tokens": sum(note["tokens"] for note in notes) + self._rest_tokens,
            "shards_reused": self._reused,
            "engine": engine,
        }
        return Outcome([*self.files(), *([self._partials] if self._partials else [])], info)

    def _id(self, row: int) -> int:
        """The trajectory id of a row of this round."""
        return self._round * IDS_PER_ROUND + row

    def _elapsed(self) -> float:
        """The seconds since the last call."""
        before, self._started = self._started, time.perf_counter()
        return self._started - before

    def _generated(self, rows: pa.Table) -> int:
        """The number of tokens that were generated by this round's policy."""
        writers = pc.list_flatten(rows.column("policy_rounds"))
        return int(pc.sum(pc.equal(writers, self._writer)).as_py() or 0)

    def _note(self, number: int) -> Path:
        return (self._directory.path / self._directory.shard(self._round, number)).with_suffix(".json")

    def _keep(self, note: Path) -> None:
        """Reuse a shard that an earlier attempt published under this key, if its checksum still matches."""
        record, number = read_sealed(note), int(note.stem.removeprefix("shard-"))
        if record["key"] != digest(self._key, number):
            return
        try:
            file = TableFile(**record["file"])
        except (TypeError, ValueError) as error:
            raise CorruptData(f"{note}: is not a record of a shard ({error})") from error
        path = self._directory.path / file.path
        if path.exists() and file_digest(path) == file.sha256:
            self._notes[number] = record


def publish_shards(
    context: RunContext, round: int, key: str, shards: int, make: Callable[[int, int], pa.Table], engine: str
) -> Outcome:
    """Publish `shards` shards of a round with rows from `make` (see `Shards.publish`). Reuses existing shards."""
    published = Shards(context.directory, round, key)
    done = published.groups()
    for number in range(shards):
        context.tick(number, shards)
        if number not in done:
            published.publish(make, [number])
    return published.outcome(engine)
