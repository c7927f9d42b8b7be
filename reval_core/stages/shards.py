"""Shards one by one: each is published when it is done, and kept by the attempts that follow a crash."""

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
    """The shards of a round under a key that names the whole, those of crashed attempts included."""

    def __init__(
        self, directory: RunDirectory, round: int, key: str, *, writer: int | None = None, gapless: bool = False
    ) -> None:
        """`writer` is the policy, by its round, that writes here: what others have written is not counted.

        With `gapless` no shard is kept after one that is missing, which might come out of another size.
        """
        self._directory = directory
        self._round = round
        self._key = key
        self._writer = writer
        self._notes: dict[int, dict[str, Any]] = {}
        """A note a shard: its file, how long it took, and what is in it."""
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
        """What is in the finished shards."""
        return {number for note in self._notes.values() for number in note["groups"]}

    def files(self, groups: int | None = None) -> list[TableFile]:
        """The finished shards in order: all, or those of the first so many groups."""
        notes = [self._notes[number] for number in sorted(self._notes)]
        return [TableFile(**note["file"]) for note in notes if groups is None or max(note["groups"]) < groups]

    def restart_clock(self) -> None:
        """Leave the time since the last shard out of what generation took."""
        self._started = time.perf_counter()

    def publish(self, make: Callable[[int, int], pa.Table], groups: Sequence[int]) -> None:
        """Publish the next shard, which holds these groups.

        `make` is given its number and the place of its first row in the round, and gives its rows.
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
        """Publish groups as they finish, `size` to a shard; they leave `waiting`.

        `table` gives the rows of groups, by the shard's number and the place of its first row.
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
        """Publish what was cut off; its places in the round follow those of the shards."""
        rows = make(sum(note["file"]["rows"] for note in self._notes.values()))
        path = Path(self._directory.shard(self._round, 0)).with_name("partials.parquet")
        self._partials = publish_table(self._directory.path, str(path), "partials", rows)
        self._rest_seconds, self._rest_tokens = self._elapsed(), self._generated(rows)

    def outcome(self) -> Outcome:
        """All shards in order, and what was cut off."""
        notes = [self._notes[number] for number in sorted(self._notes)]
        info = {
            "generation_seconds": sum(note["seconds"] for note in notes) + self._rest_seconds,
            "generated_tokens": sum(note["tokens"] for note in notes) + self._rest_tokens,
            "shards_reused": self._reused,
        }
        return Outcome([*self.files(), *([self._partials] if self._partials else [])], info)

    def _elapsed(self) -> float:
        """The seconds since this was asked last."""
        before, self._started = self._started, time.perf_counter()
        return self._started - before

    def _generated(self, rows: pa.Table) -> int:
        """How many of the tokens were generated here."""
        writers = pc.list_flatten(rows.column("policy_rounds"))
        return int(pc.sum(pc.equal(writers, self._writer)).as_py() or 0)

    def _note(self, number: int) -> Path:
        return (self._directory.path / self._directory.shard(self._round, number)).with_suffix(".json")

    def _keep(self, note: Path) -> None:
        """Keep a shard that an earlier attempt published whole under this key, if its bytes are still those."""
        found, number = read_sealed(note), int(note.stem.removeprefix("shard-"))
        if found["key"] != digest(self._key, number):
            return
        try:
            file = TableFile(**found["file"])
        except (TypeError, ValueError) as error:
            raise CorruptData(f"{note}: is no record of a shard ({error})") from error
        path = self._directory.path / file.path
        if path.exists() and file_digest(path) == file.sha256:
            self._notes[number] = found


def publish_shards(
    context: RunContext, round: int, key: str, shards: int, make: Callable[[int, int], pa.Table]
) -> Outcome:
    """Publish so many shards of a round, each in its place, as `make` gives them (see `Shards.publish`)."""
    published = Shards(context.directory, round, key)
    done = published.groups()
    for number in range(shards):
        context.tick(number, shards)
        if number not in done:
            published.publish(make, [number])
    return published.outcome()
