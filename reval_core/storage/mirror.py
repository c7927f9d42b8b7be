"""The mirror of a run: its published files are copied to an object store in the background."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

from reval_core.atomic_files import CHECKSUMS, file_digest
from reval_core.errors import RunStopped
from reval_core.storage.lease import Lease
from reval_core.storage.mirror_index import Entry, IndexWriter
from reval_core.storage.object_store import ObjectStore, StoreError
from reval_core.storage.published import (
    Digests,
    Stamp,
    is_dropped,
    is_quarantined,
    is_record,
    named,
    published_files,
)

log = logging.getLogger("reval")

_UPLOADS = 4
"""The number of files that are uploaded at the same time."""

_INLINE_BYTES = 8 << 20
"""Files up to this size are read once; larger ones are read twice, for the digest and for the copy."""

_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""The delays between attempts while the store fails; the last one repeats."""

_BEHIND_SECONDS = 300.0
"""A warning says when the mirror lags this far behind the run."""

_HASTY_SECONDS = 10.0
"""How long a run that was interrupted or failed begins further copies."""

_SILENT_SECONDS = 5.0
"""A run that ends says that it waits for its mirror if that lags further behind."""

_SHOWN = 5
"""The number of files that a message names."""


@dataclass(frozen=True)
class Lag:
    """How far a mirror is behind its run."""

    files: int
    """The files that were found and are not copied yet."""
    seconds: float
    """The time since the mirror last held everything that the run had published; 0 if it does."""


@dataclass
class _Batch:
    """The work of one commit: the copies that it lists, and the files that have to wait for a later one."""

    copied: dict[str, Entry] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    """The reason for each file that is not copied yet."""

    def postpone(self, path: str, reason: str) -> None:
        self.waiting[path] = reason
        self.copied.pop(path, None)


class Mirror:
    """Copies the published files of a run to an object store, in a thread of its own.

    The queue is one flag: whether there may be something new. What has to be copied follows from the directory and
    the index of the mirror, so that nothing is forgotten and a backlog becomes one commit. A commit takes a record
    only together with the files that it names, with the digests that it gives.
    """

    def __init__(self, store: ObjectStore, lease: Lease, index: IndexWriter, directory: Path) -> None:
        self._store = store
        self._lease = lease
        self._writer = index
        self._directory = directory
        self._seen: dict[str, Stamp] = {}
        """The files that the mirror is known to hold as they are."""
        self._digests: dict[str, tuple[str, ...]] = {}
        """The digests that the records of this directory give for other files."""
        self._waiting: dict[str, str] = {}
        self._deadline: float | None = None
        """The moment after which no copy is begun."""
        self._wanted = threading.Event()
        self._ended = threading.Event()
        self._behind_since: float | None = time.monotonic()
        self._warned_at = 0.0
        self._failure: StoreError | None = None
        self._broken: Exception | None = None
        self._has_garbage = True
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> Self:
        self._wanted.set()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._deadline = time.monotonic() + _HASTY_SECONDS
        elif self.lag.seconds > _SILENT_SECONDS:
            log.warning("%s: the run ends when its last files are copied", self._store.url)
        self._ended.set()
        self._wanted.set()
        self._thread.join()
        if kind is None:
            self._finish(len(_RETRY_SECONDS))
        elif self._lease.lost_to is None and self._broken is None:
            with suppress(RunStopped):  # the error that ended the run is the one to report
                self._finish(0)

    def wake(self) -> None:
        """Note that a file was published. Raises RunStopped if another host has taken the run over."""
        self.check()
        if self._behind_since is None:
            self._behind_since = time.monotonic()
        self._wanted.set()

    def check(self) -> None:
        """Raise RunStopped if another host has taken the run over."""
        self._lease.check()
        if self._broken is not None:
            raise self._broken

    @property
    def lag(self) -> Lag:
        """How far the mirror is behind."""
        since = self._behind_since
        return Lag(len(self._waiting), 0.0 if since is None else time.monotonic() - since)

    def sync(self) -> None:
        """Copy everything that has been published and is not in the mirror, as one commit.

        Files that change meanwhile, and records whose files are missing or corrupt, wait for the next call.

        Raises:
            StoreError: The store failed. What was committed before counts, and nothing of this commit.
            RunStopped: Another process took the lease.
        """
        self._lease.check()
        started = time.monotonic()
        present = published_files(self._directory)
        batch = _Batch(stamps={path: one for path, one in present.items() if self._seen.get(path) != one})
        self._writer.begin()
        pruned_to = max((int(path[7:12]) for path in present if path.startswith("pruned-")), default=0)
        records = self._read_records(batch, pruned_to)
        self._skip_held(batch)
        self._waiting = dict.fromkeys(batch.stamps, "is not copied yet")
        self._copy(batch)
        self._join_records(batch, records)
        removed = self._removed(present, pruned_to, batch)
        if batch.copied or removed:
            self._lease.check()
            replaced = self._writer.commit(batch.copied, removed)
            log.info("%s: %d files copied, %d removed", self._store.url, len(batch.copied), len(removed))
            self._seen |= {path: batch.stamps[path] for path in batch.copied}
            self._delete(replaced)
        for path in removed:
            self._seen.pop(path, None)
        self._waiting = batch.waiting
        if not batch.waiting:
            self._behind_since = started if self._wanted.is_set() else None
        if self._has_garbage:
            self._delete(self._writer.garbage())
            self._has_garbage = False

    def _read_records(self, batch: _Batch, pruned_to: int) -> dict[str, tuple[bytes, Digests]]:
        """The new records, read before the files that they name. Unreadable ones wait."""
        records = {}
        for path in sorted(filter(is_record, batch.stamps)):
            try:
                content = (self._directory / path).read_bytes()
                records[path] = content, named(path, content, pruned_to)
            except FileNotFoundError:
                batch.stamps.pop(path)  # deleted meanwhile
            except (OSError, ValueError) as error:
                batch.postpone(path, f"cannot be read ({error})")
            else:
                self._digests.update(records[path][1])
        return records

    def _skip_held(self, batch: _Batch) -> None:
        """Skip the files that the mirror holds as their records say; the start of a run compares the two."""
        for path, digests in self._digests.items():
            held, stamp = self._writer.index.entries.get(path), batch.stamps.get(path)
            if held is not None and stamp is not None and held.size == stamp.size and held.sha256 in digests:
                self._seen[path] = batch.stamps.pop(path)

    def _copy(self, batch: _Batch) -> None:
        """Upload the new files that are not records."""
        paths = sorted(path for path in batch.stamps if not is_record(path))
        with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="mirror") as pool:
            for path, entry in zip(paths, pool.map(lambda path: self._copied(path, batch), paths), strict=True):
                if entry is None:
                    batch.postpone(path, "changed while it was copied")
                elif entry == self._writer.index.entries.get(path):
                    self._seen[path] = batch.stamps[path]
                else:
                    batch.copied[path] = entry

    def _copied(self, path: str, batch: _Batch) -> Entry | None:
        """Upload a file unless the mirror has it; None if it changed or was deleted meanwhile."""
        self._lease.check()
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise StoreError(f"{self._store.url}/{path}: the run ended before it was copied")
        file, stamp, held = self._directory / path, batch.stamps[path], self._writer.index.entries.get(path)
        try:
            if stamp.size <= _INLINE_BYTES:
                return self._written(path, file.read_bytes(), held)
            sha256, name = file_digest(file), self._writer.object_name(path)
            if held is not None and held.sha256 == sha256:
                return held
            self._store.upload(file, name)
            status = file.stat()
        except FileNotFoundError:
            return None
        unchanged = Stamp(status.st_size, status.st_mtime_ns, status.st_ino) == stamp
        return Entry(name, sha256, stamp.size) if unchanged else None

    def _written(self, path: str, content: bytes, held: Entry | None) -> Entry:
        sha256, name = hashlib.sha256(content).hexdigest(), self._writer.object_name(path)
        if held is not None and held.sha256 == sha256:
            return held
        self._store.write(name, content)
        return Entry(name, sha256, len(content))

    def _join_records(self, batch: _Batch, records: Mapping[str, tuple[bytes, Digests]]) -> None:
        """Upload each record whose files are in the mirror or in this commit; postpone the others."""
        index = self._writer.index.entries
        for path, (content, digests) in records.items():
            missing = next((one for one in digests if not self._holds(batch, one, digests[one])), None)
            if missing is not None:
                batch.postpone(path, f"names {missing}, which is missing or differs from it")
                if path.endswith(f"/{CHECKSUMS}"):  # half a directory is of no use
                    parent = str(PurePosixPath(path).parent)
                    for one in [one for one in batch.copied if one.startswith(f"{parent}/")]:
                        batch.postpone(one, f"waits for {missing}")
                continue
            entry = self._written(path, content, index.get(path))
            if entry == index.get(path):
                self._seen[path] = batch.stamps[path]
            else:
                batch.copied[path] = entry

    def _holds(self, batch: _Batch, path: str, digests: tuple[str, ...]) -> bool:
        entry = batch.copied.get(path) or self._writer.index.entries.get(path)
        return entry is not None and entry.sha256 in digests

    def _removed(self, present: Mapping[str, Stamp], pruned_to: int, batch: _Batch) -> list[str]:
        """The files that the run has deleted. Nothing is removed while anything else is absent.

        Whoever deletes a run directory by mistake keeps its mirror.
        """
        absent = [path for path in self._writer.index.entries if path not in present]
        dropped = [path for path in absent if is_dropped(self._directory, path, pruned_to)]
        lost = set(absent).difference(dropped)
        if any(not is_quarantined(self._directory, path) for path in lost):
            return []
        merged = f"pruned-{pruned_to:05d}/{CHECKSUMS}"
        if pruned_to and merged not in {**self._writer.index.entries, **batch.copied}:
            return []
        return [path for path in dropped if not is_quarantined(self._directory, path)]

    def _delete(self, objects: list[str]) -> None:
        """Delete objects that are no longer listed. A later epoch may list them, so its absence is checked last."""
        if objects:
            self._lease.renew()
            self._lease.check()
            self._store.delete(objects)

    def _work(self) -> None:
        while not self._ended.is_set():
            self._wanted.wait(self._lease.holder.seconds)  # also copies the shards of a round under way
            if self._ended.is_set() or self._lease.lost_to is not None:
                return
            self._wanted.clear()
            self._try_until_copied()

    def _try_until_copied(self) -> None:
        attempt = 0
        while not self._ended.is_set() and not self._synced():
            self._ended.wait(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            attempt += 1

    def _synced(self) -> bool:
        """Whether an attempt to copy succeeded, or can no longer succeed."""
        try:
            self.sync()
        except StoreError as error:
            self._failure = error
            self._warn(f"files cannot be copied to the mirror, which is tried again: {error}")
            return False
        except RunStopped:
            return True  # `check` raises it in the thread of the run
        except Exception as error:
            self._broken = error
            return True
        if self._failure is not None:
            log.warning("%s: can be reached again; the mirror is up to date", self._store.url)
            self._failure = None
        if self.lag.seconds > _BEHIND_SECONDS:
            self._warn(f"{self._store.url}: is {self.lag.seconds:.0f} s behind; {_listed(self._waiting)}")
        return True

    def _warn(self, message: str) -> None:
        """Log a warning, at most one in five minutes."""
        if not self._warned_at or time.monotonic() - self._warned_at > _BEHIND_SECONDS:
            self._warned_at = time.monotonic()
            log.warning("%s", message)

    def _finish(self, retries: int) -> None:
        """Copy what is left. Raises RunStopped, naming what is not in the mirror, if that fails."""
        self.check()
        for delay in (*_RETRY_SECONDS[:retries], None):
            done = self._synced() and not self._waiting
            self.check()
            if done or delay is None:
                break
            time.sleep(delay)
        if not done:
            reason = f" ({self._failure})" if self._failure else ""
            raise RunStopped(
                f"{self._store.url}: {_listed(self._waiting)}{reason}; {self._directory} is complete, and reval "
                "resume copies what is missing"
            )


def _listed(waiting: Mapping[str, str]) -> str:
    """A message that names the first files which wait, with the reason for the first."""
    first = next(iter(waiting), "")
    more = f" and {len(waiting) - _SHOWN} more" if len(waiting) > _SHOWN else ""
    return f"{', '.join(list(waiting)[:_SHOWN])}{more} not copied: {first} {waiting.get(first, '')}".strip()


@contextmanager
def held_mirror(store: ObjectStore, lease: Lease, index: IndexWriter, directory: Path) -> Iterator[Mirror]:
    """Context manager for the mirror of a run, whose lease is renewed meanwhile and released afterwards."""
    with lease, Mirror(store, lease, index, directory) as mirror:
        yield mirror
