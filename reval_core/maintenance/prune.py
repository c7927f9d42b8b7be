"""Pruning of a finished run: deletes the tokens of trajectories outside the buffer, keeps all other columns.

The many small files of those rounds are merged into one per table, and their manifests are read as pointing into
it. Policies between two checkpoints can no longer be reconstructed, since that needs the tokens that were drawn.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from reval_core.atomic_files import CORRUPT, publish_directory, publish_json, remove_directory
from reval_core.config import Config
from reval_core.errors import InputError
from reval_core.replay_buffer.index import Store, rebuild_store
from reval_core.storage.run_directory import PRUNED, RunDirectory, merged_name
from reval_core.storage.tables import SCHEMAS, Manifest, publish_table, read_table


@dataclass(frozen=True)
class Plan:
    """What pruning would do. Sizes are in bytes on disk, before pruning."""

    last_round: int
    """The tokens of all rounds up to this one are deleted; 0 if every trajectory is in the buffer."""
    files: int
    """Number of Parquet files to merge."""
    size: int
    """Their size, of which a small part remains."""
    leftovers: int
    """Number of files to delete: cached task results and quarantined files."""
    leftovers_size: int


def plan(directory: RunDirectory, config: Config) -> Plan:
    """What can be deleted. Raises InputError if the run is not finished."""
    if not directory.is_finished(config) or not directory.summary.exists():
        raise InputError(f"{directory.path}: is not finished; only a finished run can be pruned (reval resume)")
    last = max(0, _oldest_live(directory, config) - 1)
    paths = {directory.path / file.path for one in _prunable(directory, last) for file in one.files}
    leftovers = [path for path in _leftovers(directory) if path.is_file()]
    return Plan(last, len(paths), _size(paths), len(leftovers), _size(leftovers))


def prune(
    directory: RunDirectory, config: Config, tick: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Execute `plan`. The caller holds the lock of the directory.

    One rename publishes the merged files. If the process is killed before it, nothing has changed; if it is killed
    after it, the original files still exist and the next call deletes them.
    """
    last = plan(directory, config).last_round
    groups = _grouped(_prunable(directory, last))

    def write(partial: Path) -> None:
        for number, ((stage, table), paths) in enumerate(groups.items()):
            rows = _without_tokens(table, [directory.path / path for path in paths])
            publish_table(partial, merged_name(stage, table), table, rows)
            tick(number + 1, len(groups))
        publish_json(partial / PRUNED, {"at_round": config.rounds})

    if groups and directory.pruned_to() < last:
        publish_directory(directory.pruned(last), write)
    rebuild_store(directory, config.replay.capacity, config.replay.max_age)
    _delete_unlisted(directory, last)
    for path in _leftovers(directory):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _oldest_live(directory: RunDirectory, config: Config) -> int:
    store = Store(directory.path, directory.database, config.replay.capacity, config.replay.max_age)
    store.build(directory.manifests())
    oldest = store.query("SELECT min(round) AS oldest FROM buffer").column("oldest")[0].as_py()
    store.close()
    return 0 if oldest is None else int(oldest)


def _prunable(directory: RunDirectory, last: int) -> list[Manifest]:
    return [manifest for manifest in directory.manifests() if 0 < manifest.round <= last and manifest.files]


def _grouped(manifests: list[Manifest]) -> dict[tuple[str, str], list[str]]:
    """The files of each stage's table, in order."""
    groups: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for manifest in manifests:
        for file in manifest.files:
            groups[manifest.stage, file.table][file.path] = None
    return {name: list(paths) for name, paths in groups.items()}


def _without_tokens(table: str, paths: list[Path]) -> pa.Table:
    """The rows of all files, with nulls in the columns with one value per token."""
    schema = SCHEMAS[table]
    kept = [field.name for field in schema if not pa.types.is_list(field.type)]
    rows = pa.concat_tables(read_table(path, kept) for path in paths)
    columns = {
        field.name: rows.column(field.name) if field.name in kept else pa.nulls(len(rows), field.type)
        for field in schema
    }
    return pa.table(columns, schema=schema)


def _delete_unlisted(directory: RunDirectory, last: int) -> None:
    if last == 0:
        return
    listed = {directory.path / file.path for manifest in directory.manifests() for file in manifest.files}
    for path in directory.path.glob("pruned-?????"):
        if path != directory.pruned(last):
            remove_directory(path)
    for round in range(1, last + 1):
        shards, tables = (directory.manifest_path(stage, round).parent for stage in ("rollouts", "verification"))
        # Including the notes of the shards.
        for path in [
            *shards.glob("shard-*"),
            *shards.glob("judged-*"),
            *shards.glob("partials.parquet"),
            *tables.glob("*.parquet"),
        ]:
            if path not in listed:
                path.unlink()


def _leftovers(directory: RunDirectory) -> list[Path]:
    kept_results = directory.cache.glob("*") if directory.cache.exists() else ()
    return [*kept_results, *directory.path.rglob(f"*{CORRUPT}")]


def _size(paths: set[Path] | list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
