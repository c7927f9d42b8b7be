"""The mirror of a run that is being trained: what must hold before it is written, and its lifetime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reval_core.config import Storage
from reval_core.config.places import check_writable
from reval_core.errors import InputError
from reval_core.storage.lease import Lease, check_lease
from reval_core.storage.mirror import Mirror, held_mirror
from reval_core.storage.mirror_index import Index, IndexWriter, read_index
from reval_core.storage.object_store import ObjectStore, StoreError
from reval_core.storage.published import is_dropped, is_quarantined, is_record
from reval_core.storage.run_directory import RunDirectory


def check_mirror(directory: RunDirectory, settings: Storage) -> None:
    """Check that a run may use its mirror, as far as that is possible without writing to it.

    Raises:
        InputError: The store cannot be opened or reached, or the mirror belongs to another run or another host.
    """
    if settings.mirror is None:
        return
    store = ObjectStore(settings.mirror)
    if store.local_path is not None:
        _check_place(store.local_path, directory.path, settings.mirror)
    try:
        if check_lease(store, directory.path) is not None:
            _check_not_ahead(store, read_index(store) or Index(), directory)
    except StoreError as error:
        raise InputError(f"storage.mirror: cannot be reached: {error}") from error


@contextmanager
def mirrored(directory: RunDirectory, settings: Storage) -> Iterator[Mirror | None]:
    """Context manager for the mirror of a run whose lock is held; None without `storage.mirror`.

    Leaving it waits until everything is copied.

    Raises:
        InputError: The mirror belongs to another run or another host.
        StoreError: The store cannot be reached.
        RunStopped: At the end, some files could not be copied, or another host has taken the run over.
    """
    if settings.mirror is None:
        yield None
        return
    store = ObjectStore(settings.mirror)
    lease = Lease.take(store, directory.path, settings.lease_seconds, check_lease(store, directory.path))
    base = read_index(store) or Index()
    _check_not_ahead(store, base, directory)
    with held_mirror(store, lease, IndexWriter(store, lease.holder.name, base), directory.path) as mirror:
        yield mirror


def _check_not_ahead(store: ObjectStore, index: Index, directory: RunDirectory) -> None:
    """Check that a directory has every record that its mirror has: else the two are not one history."""
    pruned_to = directory.pruned_to()
    lost = [
        path
        for path in index.entries
        if is_record(path)
        and not (directory.path / path).exists()
        and not is_dropped(directory.path, path, pruned_to)
        and not is_quarantined(directory.path, path)
    ]
    if lost:
        raise InputError(
            f"{directory.path}: lacks {lost[0]} and {len(lost) - 1} more records that its mirror {store.url} has; "
            f"restore it with reval restore {store.url} DIR into a new directory"
        )


def _check_place(mirror: Path, directory: Path, url: str) -> None:
    inside = mirror == directory or directory in mirror.parents or mirror in directory.parents
    if inside:
        raise InputError(f"storage.mirror: {url}: overlaps the run directory {directory}; give another place")
    check_writable(mirror, f"storage.mirror: {url}")
