"""Incremental shards: each is published when it is complete, and reused by later attempts after a crash."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reval_core.atomic_files import digest, file_digest, publish_sealed, read_sealed
from reval_core.errors import CorruptData
from reval_core.pipeline.run_context import RunContext
from reval_core.replay_buffer.groups import Group
from reval_core.stages.stage import Outcome
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import TableFile, publish_table


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

    def publish_finished(
        self,
        waiting: dict[int, Group],
        finished: Iterable[int],
        size: int,
        table: Callable[[int | None, int, Sequence[Group]], pa.Table],
    ) -> None:
        """Publish groups as they finish.

        Args:
            waiting: The unpublished groups by number; published groups are removed.
            finished: Yields the numbers of groups as they finish.
            size: The number of groups per shard.
            table: Called with the number of the shard, the index of its first row within the round and the groups;
                returns the rows.
        """
        ready: list[int] = []

        def publish() -> None:
            done = [waiting.pop(number) for number in sorted(ready)]
            self.publish(lambda shard, first: table(shard, first, done), sorted(ready))
            ready.clear()

        for number in finished:
            ready.append(number)
            if len(ready) == size:
                publish()
        if ready:
            publish()

    def publish_partials(self, make: Callable[[int], pa.Table]) -> None:
        """Publish groups that were cut off; their row indices follow those of the shards."""
        rows = make(sum(note["file"]["rows"] for note in self._notes.values()))
        path = Path(self._directory.shard(self._round, 0)).with_name("partials.parquet")
        self._partials = publish_table(self._directory.path, str(path), "partials", rows)
        self._rest_seconds, self._rest_tokens = self._elapsed(), self._generated(rows)

    def outcome(self) -> Outcome:
        """The outcome of the stage: all shards in order, and the groups that were cut off."""
        notes = [self._notes[number] for number in sorted(self._notes)]
        info = {
            "generation_seconds": sum(note["seconds"] for note in notes) + self._rest_seconds,
            "generated_tokens": sum(note["tokens"] for note in notes) + self._rest_tokens,
            "shards_reused": self._reused,
        }
        return Outcome([*self.files(), *([self._partials] if self._partials else [])], info)

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
    context: RunContext, round: int, key: str, shards: int, make: Callable[[int, int], pa.Table]
) -> Outcome:
    """Publish `shards` shards of a round with rows from `make` (see `Shards.publish`). Reuses existing shards."""
    published = Shards(context.directory, round, key)
    done = published.groups()
    for number in range(shards):
        context.tick(number, shards)
        if number not in done:
            published.publish(make, [number])
    return published.outcome()
