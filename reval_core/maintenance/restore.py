"""Restoring a run from its mirror: into a new directory, from which it resumes on this host."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from reval_core.atomic_files import file_digest, publish_file
from reval_core.config import Config
from reval_core.config.loader import load_config
from reval_core.config.places import check_directory
from reval_core.config.yaml_files import read_section
from reval_core.errors import CorruptData, InputError
from reval_core.replay_buffer.index import rebuild_store
from reval_core.storage.lease import Lease, LeaseState, check_expired, owns_lease, read_lease
from reval_core.storage.mirror_index import Entry, Index, IndexWriter, read_index
from reval_core.storage.object_store import ObjectStore
from reval_core.storage.published import is_record, named
from reval_core.storage.run_directory import RunDirectory

_DOWNLOADS = 8
"""The number of files that are downloaded at the same time."""

_CONFIG = "config.yaml"


@dataclass(frozen=True)
class MirroredRun:
    """A run as its mirror holds it."""

    store: ObjectStore
    lease: LeaseState
    index: Index

    @property
    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(entry.size for entry in self.index.entries.values())

    @property
    def rounds(self) -> int:
        """The number of recorded rounds."""
        return sum(path.startswith("facts/") and path.endswith("/recording.json") for path in self.index.entries)


def read_mirror(url: str) -> MirroredRun:
    """The run in a mirror.

    Raises:
        InputError: There is no run.
        CorruptData: The index of the mirror is corrupt.
        StoreError: The store cannot be reached.
    """
    store = ObjectStore(url)
    lease, index = read_lease(store), read_index(store)
    if lease is None or index is None or _CONFIG not in index.entries:
        raise InputError(f"{url}: contains no mirrored run; give the storage.mirror of a run")
    return MirroredRun(store, lease, index)


def check_restore(run: MirroredRun, directory: RunDirectory, take_over: bool) -> None:
    """Check that a run can be restored into a directory. Changes nothing.

    Raises:
        InputError: The directory contains something else, the disk is too small, or the lease of the process that
            runs the run is still valid and `take_over` is not set.
    """
    if owns_lease(run.lease, directory.path):
        directory.check_free()
        if all((directory.path / path).exists() for path in run.index.entries if is_record(path)):
            raise InputError(f"{directory.path}: is this run already; resume it with reval resume {directory.path}")
    else:
        check_directory(directory.path, "DIR", ())
        if not take_over:
            check_expired(run.store, run.lease, "restore it with --take-over")
    free = directory.free_bytes()
    if run.size > free:
        raise InputError(
            f"{directory.path}: the run has {run.size / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB free; "
            "make space, or give another directory"
        )


def restore(
    run: MirroredRun, directory: RunDirectory, tick: Callable[[int, int], None] = lambda done, total: None
) -> Lease:
    """Take the lease on a mirror, and download the run that passed `check_restore`.

    The config comes first and the records last: a restore that was interrupted cannot be resumed as a run, and is
    completed by another call. The database is rebuilt.

    Args:
        run: The run in its mirror.
        directory: The directory to create.
        tick: Called with the number of restored and of all files.

    Returns:
        The lease that was taken; it is released.

    Raises:
        CorruptData: A file in the mirror differs from what its record says.
        RunStopped: Another process took the lease meanwhile.
        StoreError: The store failed.
    """
    store = run.store
    with directory.lock():
        taken = Lease.take(store, directory.path, run.lease.holder.seconds, run.lease)
        with taken as lease:
            index = read_index(store) or run.index  # what the former holder committed until its lease was taken
            IndexWriter(store, lease.holder.name, index)
            config = _restore_config(store, index.entries[_CONFIG], directory)
            paths = [path for path in index.entries if path != _CONFIG and not _is_local(path, config)]
            done = 0
            for records in (False, True):
                part = [path for path in paths if is_record(path) == records]
                with ThreadPoolExecutor(_DOWNLOADS) as pool:
                    for _ in pool.map(lambda path: _fetch(store, index.entries[path], directory.path, path), part):
                        lease.check()
                        done += 1
                        tick(done, len(paths))
            _check_records(index, directory)
            rebuild_store(directory, config.replay.capacity, config.replay.max_age)
    return lease


def _restore_config(store: ObjectStore, entry: Entry, directory: RunDirectory) -> Config:
    """Write the config of the run, with the mirror from which it was restored."""
    _fetch(store, entry, directory.path, _CONFIG)
    values = read_section(directory.config)
    storage = values.get("storage") or {}
    if storage.get("mirror") != store.url:  # the store was moved, or is reached by another name
        values["storage"] = {**storage, "mirror": store.url}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        publish_file(directory.config, lambda partial: partial.write_text(text, encoding="utf-8"))
    return load_config(directory.config)


def _is_local(path: str, config: Config) -> bool:
    """Whether a file refers to a database that stayed on the former host."""
    return path == "mlflow.json" and config.tracking.uri is None


def _fetch(store: ObjectStore, entry: Entry, directory: Path, path: str) -> None:
    """Download a file, unless the directory has it. Raises CorruptData if it differs from what the index says."""
    target = directory / path
    if target.exists() and target.stat().st_size == entry.size and file_digest(target) == entry.sha256:
        return

    def write(partial: Path) -> None:
        store.download(entry.object, partial)
        if partial.stat().st_size != entry.size or file_digest(partial) != entry.sha256:
            raise CorruptData(f"{store.url}/{entry.object}: differs from what was copied; the mirror is corrupt")

    publish_file(target, write)


def _check_records(index: Index, directory: RunDirectory) -> None:
    """Check that the files which the restored records name are those of the index. Raises CorruptData."""
    pruned_to = directory.pruned_to()
    for path in filter(is_record, index.entries):
        for name, digests in named(path, (directory.path / path).read_bytes(), pruned_to).items():
            entry = index.entries.get(name)
            if entry is None or entry.sha256 not in digests:
                raise CorruptData(f"{directory.path / path}: names {name}, which the mirror lacks")
