"""A run directory: the paths in it, the lock that protects it, and the check that a config belongs to it."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pydantic import ValidationError

from reval_core.atomic_files import CHECKSUMS, publish_file, publish_json, read_json
from reval_core.config import Config
from reval_core.config.places import check_directory, check_local
from reval_core.config.yaml_files import read_section
from reval_core.errors import CorruptData, InputError
from reval_core.storage.entries import check_entries
from reval_core.storage.tables import Manifest, Table, read_manifest, read_table, write_manifest

STAGES = (
    "warm_start",
    "rollouts",
    "verification",
    "consistency",
    "sampling",
    "learning",
    "evaluation",
    "checkpoint",
    "reference_reset",
    "recording",
)
"""The stages of a round, in execution order."""


PRUNED = "pruned.json"

_MARKS = ("config.yaml", "evaluation.yaml", "lock", "attempts")
"""Files that identify a directory made by reval, even if the run was killed at once or has lost its config."""


# How long a process that only queries the lock's holder may delay the next one.
_QUERY_SECONDS = 1.0


def merged_name(stage: str, table: str) -> str:
    """The file into which pruning merges a stage's rows of a table."""
    return f"{stage}-{table}.parquet"


class RunDirectory:
    """The paths of one run. Creating the object does not touch the disk.

    Raises:
        InputError: If `path` is a URL.
    """

    unit = "round"
    """The unit by which tables are partitioned on disk."""
    option = "--run-dir"
    """The command-line option that sets the directory."""

    def __init__(self, path: Path) -> None:
        check_local(path)
        self.path = path.absolute()
        self.config = self.path / "config.yaml"
        self.machine = self.path / "machine.json"
        self.prompts = self.path / "prompts.parquet"
        """The rendered prompt of each problem."""
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.database = self.path / "replay.duckdb"
        self.tables = self.path / "tables.duckdb"
        """Views of the tables, for readers."""
        self.checkpoints = self.path / "checkpoints"
        self.base = self.checkpoints / "base"
        """With LoRA: the frozen model under the adapters."""
        self.cache = self.path / "cache"
        self.attempts = self.path / "attempts"
        self.protocol = self.path / "evaluation.yaml"
        """In an evaluation's directory: the settings of the last evaluation, in full."""
        self.stored = self.path / "stored.json"
        """In offline training: the record of the imported trajectories."""

    @property
    def name(self) -> str:
        """The run's name: the name of its directory."""
        return self.path.name

    def shard(self, round: int, shard: int) -> str:
        """The path of a shard, relative to the run directory."""
        return f"rollouts/{self.unit}={round:05d}/shard-{shard:03d}.parquet"

    def facts(self, round: int, table: str) -> str:
        """The path of a round's rows of a table, relative to the run directory."""
        return f"facts/{self.unit}={round:05d}/{table}.parquet"

    def checkpoint(self, round: int) -> Path:
        """The checkpoint of the policy after round `round`."""
        return self.checkpoints / f"round={round:05d}"

    def average(self, round: int) -> Path:
        """The averaged reference that the reset after round `round` made."""
        return self.checkpoints / f"reference={round:05d}"

    def averages(self) -> list[Path]:
        """The averaged references, oldest first."""
        return sorted(path for path in self.checkpoints.glob("reference=?????") if path.is_dir())

    def manifest_path(self, stage: str, round: int) -> Path:
        """The path at which a stage's manifest is published."""
        if stage == "rollouts":
            return self.path / f"rollouts/{self.unit}={round:05d}/manifest.json"
        return self.path / f"facts/{self.unit}={round:05d}/{stage}.json"

    def manifest(self, stage: str, round: int) -> Manifest | None:
        """The manifest that a stage has published, or None.

        Raises:
            CorruptData: If the file is not a manifest.
        """
        manifest = read_manifest(self.manifest_path(stage, round))
        return None if manifest is None else self.pointer()(manifest)

    def rows(self, stage: str, round: int, table: Table, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a table that a stage has published, also after pruning: all columns, or `columns` in order.

        Raises:
            CorruptData: If the stage has not published, or a file is missing or corrupt; the message names it.
        """
        manifest = self.manifest(stage, round)
        if manifest is None:
            raise CorruptData(f"{self.manifest_path(stage, round)}: is missing")
        merged = round if 0 < round <= self.pruned_to() else None  # then one file holds the rows of many rounds
        paths = dict.fromkeys(self.path / file.path for file in manifest.files_of(table))
        return pa.concat_tables(read_table(path, columns, merged) for path in paths)

    def publish(self, manifest: Manifest) -> None:
        """Publish a stage's manifest."""
        write_manifest(self.manifest_path(manifest.stage, manifest.round), manifest)

    def manifests(self, stages: Sequence[str] = STAGES) -> list[Manifest]:
        """The published manifests of these stages, ordered by round and then by stage."""
        manifests = (read_manifest(path) for path in self.manifest_paths(stages))
        relocate = self.pointer()
        present = [relocate(manifest) for manifest in manifests if manifest is not None]
        return sorted(present, key=lambda manifest: self.place(manifest.stage, manifest.round))

    def manifest_paths(self, stages: Sequence[str] = STAGES) -> list[Path]:
        """The paths of the published manifests of these stages."""
        names = (
            f"rollouts/{self.unit}=?????/manifest.json"
            if one == "rollouts"
            else f"facts/{self.unit}=?????/{one}.json"
            for one in stages
        )
        return [path for name in names for path in self.path.glob(name)]

    def pruned(self, last_round: int) -> Path:
        """The merged tables of a run that was pruned up to round `last_round` (no tokens)."""
        return self.path / f"pruned-{last_round:05d}"

    def pruned_to(self) -> int:
        """The last round whose tokens were pruned; 0 if the run was never pruned."""
        return max((int(path.name[-5:]) for path in self.path.glob("pruned-?????")), default=0)

    def pruned_at(self) -> int:
        """The number of rounds that the run had when it was pruned; 0 if it was never pruned."""
        last = self.pruned_to()
        return int(read_json(self.pruned(last) / PRUNED)["at_round"]) if last else 0

    def pointer(self) -> Callable[[Manifest], Manifest]:
        """A function that returns a manifest with the paths that its files have after pruning.

        `content` stays the digest of the rows with their tokens, because keys depend on it.
        """
        last = self.pruned_to()
        directory = self.pruned(last)
        sums = read_json(directory / CHECKSUMS) if last else {}

        def relocate(manifest: Manifest) -> Manifest:
            if not 0 < manifest.round <= last:
                return manifest
            names = [merged_name(manifest.stage, file.table) for file in manifest.files]
            files = (
                replace(file, path=f"{directory.name}/{name}", sha256=sums[name])
                for file, name in zip(manifest.files, names, strict=True)
            )
            return replace(manifest, files=tuple(files))

        return relocate

    def holds(self, manifest: Manifest) -> bool:
        """Whether every file that a manifest lists exists."""
        return all((self.path / file.path).exists() for file in manifest.files)

    @staticmethod
    def place(stage: str, round: int) -> tuple[int, int]:
        """A sort key: the position of a stage in the order of a run."""
        return round, STAGES.index(stage)

    def is_finished(self, config: Config) -> bool:
        """Whether the last round is recorded: the config's last, or the one whose policy reached the target."""
        if self.manifest("recording", config.rounds) is not None:
            return True
        evaluations = self.manifests(("evaluation",)) if config.evaluation.target is not None else []
        return any(
            reaches_target(one, config) and self.manifest("recording", one.round) is not None for one in evaluations
        )

    def check(self, config: Config) -> Config:
        """Check that a config may resume this run.

        Only `rounds` (a run can be extended), `memory_check`, `storage` and how an engine is run may change, not
        the kind of engine.

        Returns:
            The config with the values that the run resolved for open settings (`learner.precision: auto`, …).

        Raises:
            InputError: If the directory was made with another config, or its config can no longer be read.
        """
        self.check_place()
        check_entries(self.path)
        if self.protocol.exists():
            raise InputError(f"{self.path}: contains an evaluation; choose another --run-dir")
        if not self.config.exists():
            return config
        try:
            found = read_section(self.config)
        except InputError as error:
            raise InputError(
                f"{error}; the run's config is corrupt: delete it and pass the config that the run was started with"
            ) from error
        recorded = max((int(path.parent.name[6:]) for path in self.path.glob("facts/*/recording.json")), default=0)
        if config.rounds != found.get("rounds") and config.rounds <= recorded:
            raise InputError(
                f"{self.config}: rounds: {recorded} rounds are already recorded, and a run can be extended but not "
                f"shortened; set rounds to {recorded + 1} or more, or start a new run"
            )
        config = _with_recorded(config, found)
        recorded_config, wanted = _with_defaults(found), config.model_dump(mode="json")
        differing = [name for name in _differences(recorded_config, wanted) if not _may_change(name)]
        if differing:
            raise InputError(
                f"{self.config}: made with another config ({', '.join(differing[:5])} differ); "
                "choose another --run-dir, or pass the config that the run was started with"
            )
        return config

    def check_place(self) -> None:
        """Raise InputError if the directory cannot be created, or contains files that reval did not write."""
        check_directory(self.path, self.option, _MARKS)

    def open(self, config: Config) -> None:
        """Write the config into the directory. Raises InputError if it was made with another config."""
        config = self.check(config)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        publish_file(self.config, lambda partial: partial.write_text(text, encoding="utf-8"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory against a second process. The kernel releases the lock when the holder dies.

        Raises:
            InputError: If another process holds the lock (the message names it), or the path cannot be a run
                directory.
        """
        check_entries(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be created ({error.strerror}); choose another path") from error
        with (self.path / "lock").open("a+") as file:
            deadline = time.monotonic() + _QUERY_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() < deadline:  # `holder` takes the lock for a moment
                        time.sleep(0.01)
                        continue
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise InputError(
                        f"{self.path}: process {holder} is running it; wait for it or stop it"
                    ) from None
            file.seek(0)
            file.truncate()
            file.write(f"{os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def holder(self) -> str | None:
        """The process that is running this run now, or None."""
        lock = self.path / "lock"
        if not lock.exists():
            return None
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
        return None

    def check_free(self) -> None:
        """Raise InputError if a process is running this run now, before anything is started for it."""
        if (holder := self.holder()) is not None:
            raise InputError(f"{self.path}: process {holder} is running it; wait for it or stop it")

    def free_bytes(self) -> int:
        """The free bytes on the disk of the directory."""
        existing = next(parent for parent in [self.path, *self.path.parents] if parent.exists())
        return shutil.disk_usage(existing).free


def existing_run(path: Path) -> RunDirectory:
    """Open the run in a directory. Raises InputError if there is none."""
    directory = RunDirectory(path)
    check_entries(directory.path)
    if not directory.config.exists():
        raise InputError(f"{path}: is not a run directory (no config.yaml); `reval runs` lists the runs")
    return directory


class Attempt:
    """One process's work on a run. The wall time of a run is the sum over its attempts."""

    def __init__(self, directory: RunDirectory) -> None:
        number = max((int(path.name[:4]) for path in directory.attempts.glob("*.json*")), default=0) + 1
        self._path = directory.attempts / f"{number:04d}.json"
        self._started = time.time()
        self.touch()

    def touch(self) -> None:
        """Record that the attempt was active until now."""
        publish_json(self._path, {"started_at": self._started, "last_seen_at": time.time(), "pid": os.getpid()})


def reaches_target(evaluation: Manifest, config: Config) -> bool:
    """Whether an evaluation ends the run: its accuracy is at least `evaluation.target`."""
    target = config.evaluation.target
    return target is not None and bool(evaluation.info["accuracy"] >= target)


def wall_seconds(directory: RunDirectory) -> float:
    """The total wall time of all attempts at a run, in seconds."""
    attempts = [read_json(path) for path in sorted(directory.attempts.glob("*.json"))]
    return sum(attempt["last_seen_at"] - attempt["started_at"] for attempt in attempts)


def _may_change(name: str) -> bool:
    return name in ("rounds", "memory_check", "storage.mirror", "storage.lease_seconds") or (
        name.startswith("engine.") and name not in ("engine.kind", "engine.dtype")
    )


def _with_recorded(config: Config, found: dict[str, Any]) -> Config:
    """The config with the open settings that the run has resolved."""
    learner, recorded = config.learner, found.get("learner")
    settled: dict[str, Any] = {}
    if isinstance(recorded, dict):
        if learner.precision == "auto" and recorded.get("precision") in ("float32", "bfloat16"):
            settled["precision"] = recorded["precision"]
        if learner.gradient_checkpointing is None and isinstance(recorded.get("gradient_checkpointing"), bool):
            settled["gradient_checkpointing"] = recorded["gradient_checkpointing"]
    return config.model_copy(update={"learner": learner.model_copy(update=settled)}) if settled else config


def _with_defaults(found: Any) -> Any:
    """A recorded config with the defaults of settings added since, if it is still valid."""
    try:
        return Config.model_validate(found).model_dump(mode="json")
    except ValidationError:
        return found


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in found if key not in wanted)]
        return [
            difference
            for key in keys
            for difference in _differences(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if found == wanted else [name]
