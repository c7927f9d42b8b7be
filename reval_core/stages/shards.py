"""Shards one by one: each is published when it is done, and kept by the attempts that follow a crash."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from reval_core.facts import FactFile, publish_table
from reval_core.files import digest, file_digest, publish_sealed, read_sealed
from reval_core.session import Session
from reval_core.stages.stage import Outcome


class Shards:
    """The shards of a round under a key that names the whole, those of crashed attempts included."""

    def __init__(self, session: Session, round: int, key: str) -> None:
        self._folder = session.folder
        self._round = round
        self._key = key
        self._notes: dict[int, dict[str, Any]] = {}
        """A note a shard: its file, how long it took, and what is in it."""
        for path in sorted((session.folder.path / session.folder.shard(round, 0)).parent.glob("shard-*.json")):
            self._keep(path)
        self._reused = len(self._notes)
        self._started = time.perf_counter()

    def groups(self) -> set[int]:
        """What is in the finished shards."""
        return {number for note in self._notes.values() for number in note["groups"]}

    def rows_before(self, number: int) -> int:
        """The rows of all shards before this one."""
        return sum(note["file"]["rows"] for other, note in self._notes.items() if other < number)

    def publish(self, make: Callable[[int], pa.Table], groups: Sequence[int]) -> None:
        """Publish the next shard: the rows that `make` gives for its number, which hold these groups."""
        number = next(number for number in range(len(self._notes) + 1) if number not in self._notes)
        path = self._folder.shard(self._round, number)
        file = publish_table(self._folder.path, path, "trajectories", make(number))
        now = time.perf_counter()
        note = {
            "key": digest(self._key, number),
            "seconds": now - self._started,
            "groups": list(groups),
            "file": asdict(file),
        }
        publish_sealed(self._note(number), note)
        self._notes[number], self._started = note, now

    def publish_partials(self, rows: pa.Table) -> FactFile:
        """Publish what was cut off."""
        path = Path(self._folder.shard(self._round, 0)).with_name("partials.parquet")
        return publish_table(self._folder.path, str(path), "partials", rows)

    def outcome(self) -> Outcome:
        """All shards in order."""
        notes = [self._notes[number] for number in sorted(self._notes)]
        files = [FactFile(**note["file"]) for note in notes]
        seconds = sum(note["seconds"] for note in notes)
        return Outcome(files, {"generation_seconds": seconds, "shards_reused": self._reused})

    def _note(self, number: int) -> Path:
        return (self._folder.path / self._folder.shard(self._round, number)).with_suffix(".json")

    def _keep(self, note: Path) -> None:
        """Keep a shard that an earlier attempt published whole under this key, if its bytes are still those."""
        found, number = read_sealed(note), int(note.stem.removeprefix("shard-"))
        path = self._folder.path / found["file"]["path"]
        if (
            found["key"] == digest(self._key, number)
            and path.exists()
            and file_digest(path) == found["file"]["sha256"]
        ):
            self._notes[number] = found


def publish_shards(session: Session, round: int, key: str, count: int, make: Callable[..., pa.Table]) -> Outcome:
    """Publish `count` shards of a round, each in its place.

    `make(number, first=…)` is given a shard's number and the place of its first row, and gives its rows.
    """
    shards = Shards(session, round, key)
    done = shards.groups()
    for number in range(count):
        session.tick(number, count)
        if number not in done:
            shards.publish(partial(make, first=shards.rows_before(number)), [number])
    return shards.outcome()
