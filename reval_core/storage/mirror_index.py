"""The index of a mirror: which object holds each file of the run. It grows by commits, and each is atomic.

A commit uploads its files under names that no other commit uses, and then its record,
`index/<holder>/<number>.json`. A file counts only once a record lists it. What a holder writes after it has lost
its lease is not read: readers follow the latest epoch, whose first record lists all files.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from reval_core.atomic_files import digest
from reval_core.errors import CorruptData
from reval_core.storage.object_store import ObjectStore
from reval_core.storage.published import is_published

log = logging.getLogger("reval")

_COMPLETE_EVERY = 100
"""Every so many commits, a record lists all files, so that a reader needs few records."""

_READERS = 8


@dataclass(frozen=True)
class Entry:
    """A file in the mirror."""

    object: str
    """The name of the object with its content."""
    sha256: str
    size: int


@dataclass
class Index:
    """The files of the run by their path relative to the run directory, as of one commit."""

    entries: dict[str, Entry] = field(default_factory=dict)
    committed_at: float = 0.0
    """Seconds since the epoch."""

    def applied(self, record: Mapping[str, Any]) -> Index:
        """The index after the commit of a record."""
        entries = {} if record["complete"] else dict(self.entries)
        for path in record["removed"]:
            entries.pop(path, None)
        entries |= {path: Entry(**entry) for path, entry in record["files"].items()}
        return Index(entries, record["committed_at"])


def read_index(store: ObjectStore) -> Index | None:
    """The files of the run in a mirror, from the latest epoch that has committed any; None for an empty mirror.

    Raises:
        CorruptData: A record is missing, was changed, or lists a path outside the run.
        StoreError: The store cannot be read.
    """
    names = [name for name in store.names("index") if name.endswith(".json")]
    for holder, group in groupby(reversed(names), key=lambda name: name.split("/")[1]):  # the latest epoch first
        epoch, _, token = holder.partition("-")
        if f'"{token}"'.encode() not in (store.read(f"lease/{epoch}.json") or b""):
            continue  # written by the loser of an epoch that two processes took, where the store allows that
        records = list(_records(store, sorted(group)))
        if records:
            return _folded(store, records)
    return None


class IndexWriter:
    """Appends the commits of one epoch to the index."""

    def __init__(self, store: ObjectStore, holder: str, base: Index) -> None:
        """Publish the first record of the epoch, which lists the files of `base`.

        Args:
            store: The mirror.
            holder: The name of the lease's holder, which no other process uses.
            base: What the mirror holds. It must be read after the epoch was taken.
        """
        self._store = store
        self._holder = holder
        self._base = base
        self._number = 0
        self._batch = 0
        self.index = base
        self.commit({}, ())

    def begin(self) -> None:
        """Begin another attempt at a commit. Its objects get new names: a failed attempt may yet have succeeded."""
        self._batch += 1

    def object_name(self, path: str) -> str:
        """The name under which this attempt uploads a file."""
        return f"files/{self._holder}/{self._batch:06d}/{path}"

    def commit(self, files: Mapping[str, Entry], removed: Iterable[str]) -> list[str]:
        """Publish a record: the files were uploaded, the removed paths are no longer part of the run.

        Returns:
            The objects that are no longer listed. They may be deleted once the epoch is found to be still the
            latest *after* this call: a later epoch then starts from this record.
        """
        now = Index({**self.index.entries, **files}, time.time())
        for path in removed:
            now.entries.pop(path)
        complete = self._number % _COMPLETE_EVERY == 0
        listed = now.entries if complete else files
        body = {
            "number": self._number,
            "complete": complete,
            "files": {path: vars(entry) for path, entry in listed.items()},
            "removed": [] if complete else sorted(removed),
            "committed_at": now.committed_at,
        }
        text = json.dumps({**body, "sealed": digest(body)}, ensure_ascii=False)
        self._store.write(f"index/{self._holder}/{self._number:06d}.json", text.encode())
        replaced = [entry.object for path, entry in self.index.entries.items() if now.entries.get(path) != entry]
        self.index = now
        self._number += 1
        return replaced

    def garbage(self) -> list[str]:
        """The objects that earlier epochs left behind. They may be deleted under the same condition as above.

        What the epoch started from is kept, even if it was replaced since: a later epoch may have read it.
        """
        kept = {entry.object for entry in self._base.entries.values()}
        found = [*self._store.names("files"), *self._store.names("index")]
        earlier = [name for name in found if name.split("/")[1][:5] < self._holder[:5]]
        return [name for name in earlier if name not in kept]


def _records(store: ObjectStore, names: list[str]) -> Iterator[dict[str, Any]]:
    """The records of an epoch in order, from the last complete one. An unfinished last record is ignored.

    On file systems an interrupted write leaves a part of the record; on S3 it leaves nothing.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        start = max(0, (len(names) - 1) // _COMPLETE_EVERY * _COMPLETE_EVERY)
        found = [_parsed(content) for content in pool.map(store.read, names[start:])]
        if len(found) == 1 and found[0] is None and start:  # the complete record itself is the unfinished one
            return (yield from _records(store, names[:-1]))
    if found and found[-1] is None:
        log.warning("%s/%s: is unfinished and ignored", store.url, names[-1])
        found.pop()
    for number, (record, name) in enumerate(zip(found, names[start:], strict=False), start):
        if record is None or record["number"] != number:
            raise CorruptData(f"{store.url}/{name}: is not the record of commit {number}; the mirror is incomplete")
        yield record


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    try:
        record = json.loads(content or b"")
    except ValueError:
        return None
    sealed = isinstance(record, dict) and record.pop("sealed", None) == digest(record)
    return record if sealed else None


def _folded(store: ObjectStore, records: list[dict[str, Any]]) -> Index:
    index = Index()
    for record in records:
        index = index.applied(record)
    for path in index.entries:
        if not is_published(path):  # a mirror may come from an untrusted source
            raise CorruptData(f"{store.url}: lists {path!r}, which is not a file of a run")
    return index
