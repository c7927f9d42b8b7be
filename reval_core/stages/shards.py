"""Shards one by one: each is published when it is done, and kept by the attempts that follow a crash."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from reval_core.facts import FactFile, publish_table
from reval_core.files import digest, file_digest, publish_sealed, read_sealed
from reval_core.session import Session
from reval_core.stages.stage import Outcome


def publish_shards(
    session: Session, round: int, key: str, count: int, make: Callable[[int, int], pa.Table]
) -> Outcome:
    """Publish `count` shards of a round; `key` names the whole.

    `make` is given a shard's number and the place of its first row in the round, and gives its rows. A shard that a
    crashed attempt has finished under the same key is kept, and not made again.
    """
    files: list[FactFile] = []
    seconds, reused = 0.0, 0
    for number in range(count):
        session.tick(number, count)
        shard_key = digest(key, number)
        path = session.folder.shard(round, number)
        note = (session.folder.path / path).with_suffix(".json")
        found = _finished(session, note, shard_key)
        if found is None:
            started = time.perf_counter()
            rows = make(number, sum(file.rows for file in files))
            file = publish_table(session.folder.path, path, "trajectories", rows)
            found = {"key": shard_key, "seconds": time.perf_counter() - started, "file": asdict(file)}
            publish_sealed(note, found)
        else:
            reused += 1
        files.append(FactFile(**found["file"]))
        seconds += found["seconds"]
    return Outcome(files, {"generation_seconds": seconds, "shards_reused": reused})


def _finished(session: Session, note: Any, key: str) -> dict[str, Any] | None:
    """The note of a shard that an earlier attempt published whole, if its bytes are still those."""
    if not note.exists():
        return None
    found = read_sealed(note)
    path = session.folder.path / found["file"]["path"]
    whole = found["key"] == key and path.exists() and file_digest(path) == found["file"]["sha256"]
    return found if whole else None
