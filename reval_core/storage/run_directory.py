"""A run's folder: where everything of a run lies, who may write to it, and whether it is this config's."""

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

import yaml
from pydantic import ValidationError

from reval_core.atomic_files import CHECKSUMS, publish_file, publish_json, read_json
from reval_core.config import Config
from reval_core.config.places import check_directory, check_local
from reval_core.config.yaml_files import read_section
from reval_core.errors import InputError
from reval_core.storage.entries import check_entries
from reval_core.storage.tables import Manifest, read_manifest, write_manifest

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
"""The stages of a round in their order."""


PRUNED = "pruned.json"

_MARKS = ("config.yaml", "evaluation.yaml", "lock", "attempts")
"""What a directory holds that reval has made: also where a run was killed at once, or has lost its config."""


# How long somebody who only looks who holds a folder may keep it from its next holder.
_LOOK_SECONDS = 1.0


def merged_name(stage: str, table: str) -> str:
    """The file that pruning merges a stage's rows of a table into."""
    return f"{stage}-{table}.parquet"


class RunDirectory:
    """The paths of one run. Creating this object touches nothing on disk, and raises InputError for a URL."""

    unit = "round"
    """What its facts are counted by."""
    option = "--run-dir"
    """How a user says where it is."""

    def __init__(self, path: Path) -> None:
        check_local(path)
        self.path = path.absolute()
        self.config = self.path / "config.yaml"
        self.machine = self.path / "machine.json"
        self.prompts = self.path / "prompts.parquet"
        """What each problem looks like to the model."""
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.database = self.path / "replay.duckdb"
        self.tables = self.path / "tables.duckdb"
        """Views of the tables, for readers."""
        self.checkpoints = self.path / "checkpoints"
        self.base = self.checkpoints / "base"
        """The frozen model under the adapters, of a run with LoRA."""
        self.cache = self.path / "cache"
        self.attempts = self.path / "attempts"
        self.protocol = self.path / "evaluation.yaml"
        """In an evaluation's folder: what was asked for last, in full."""
        self.stored = self.path / "stored.json"
        """What a run of stored trajectories took over."""

    @property
    def name(self) -> str:
        """The run's name: its folder's."""
        return self.path.name

    def shard(self, round: int, shard: int) -> str:
        """The path of a shard, relative to the run folder."""
        return f"rollouts/{self.unit}={round:05d}/shard-{shard:03d}.parquet"

    def facts(self, round: int, table: str) -> str:
        """The path of a round's rows of a table, relative to the run folder."""
        return f"facts/{self.unit}={round:05d}/{table}.parquet"

    def checkpoint(self, round: int) -> Path:
        """The checkpoint of the policy after round `round`."""
        return self.checkpoints / f"round={round:05d}"

    def average(self, round: int) -> Path:
        """The reference that the reset after round `round` made, where it is an average of policies."""
        return self.checkpoints / f"reference={round:05d}"

    def averages(self) -> list[Path]:
        """The references that are averages of policies, the oldest first."""
        return sorted(path for path in self.checkpoints.glob("reference=?????") if path.is_dir())

    def manifest_path(self, stage: str, round: int) -> Path:
        """Where a stage's manifest is published."""
        if stage == "rollouts":
            return self.path / f"rollouts/{self.unit}={round:05d}/manifest.json"
        return self.path / f"facts/{self.unit}={round:05d}/{stage}.json"

    def manifest(self, stage: str, round: int) -> Manifest | None:
        """What a stage has published, if it has. Raises Damaged if that is no manifest."""
        found = read_manifest(self.manifest_path(stage, round))
        return None if found is None else self.pointer()(found)

    def publish(self, manifest: Manifest) -> None:
        """Publish a stage's manifest."""
        write_manifest(self.manifest_path(manifest.stage, manifest.round), manifest)

    def manifests(self, stages: Sequence[str] = STAGES) -> list[Manifest]:
        """The published manifests of these stages: by round, and within a round as the stages follow."""
        found = (read_manifest(path) for path in self.manifest_paths(stages))
        pointing = self.pointer()
        present = [pointing(manifest) for manifest in found if manifest is not None]
        return sorted(present, key=lambda manifest: self.place(manifest.stage, manifest.round))

    def manifest_paths(self, stages: Sequence[str] = STAGES) -> list[Path]:
        """Where manifests of these stages have been published."""
        names = (
            f"rollouts/{self.unit}=?????/manifest.json"
            if one == "rollouts"
            else f"facts/{self.unit}=?????/{one}.json"
            for one in stages
        )
        return [path for name in names for path in self.path.glob(name)]

    def pruned(self, last_round: int) -> Path:
        """The merged tables of a run whose rounds up to `last_round` have lost their tokens."""
        return self.path / f"pruned-{last_round:05d}"

    def pruned_to(self) -> int:
        """The last round whose tokens are gone; 0 if the run was never pruned."""
        return max((int(path.name[-5:]) for path in self.path.glob("pruned-?????")), default=0)

    def pruned_at(self) -> int:
        """How many rounds the run had when it was pruned; 0 if it never was."""
        last = self.pruned_to()
        return int(read_json(self.pruned(last) / PRUNED)["at_round"]) if last else 0

    def pointer(self) -> Callable[[Manifest], Manifest]:
        """What gives a manifest with its files where they are now, after pruning.

        Their `content` stays that of the rows with their tokens: keys depend on it.
        """
        last = self.pruned_to()
        directory = self.pruned(last)
        sums = read_json(directory / CHECKSUMS) if last else {}

        def pointing(manifest: Manifest) -> Manifest:
            if not 0 < manifest.round <= last:
                return manifest
            names = [merged_name(manifest.stage, file.table) for file in manifest.files]
            files = (
                replace(file, path=f"{directory.name}/{name}", sha256=sums[name])
                for file, name in zip(manifest.files, names, strict=True)
            )
            return replace(manifest, files=tuple(files))

        return pointing

    def holds(self, manifest: Manifest) -> bool:
        """Whether every file that a manifest lists is there."""
        return all((self.path / file.path).exists() for file in manifest.files)

    @staticmethod
    def place(stage: str, round: int) -> tuple[int, int]:
        """Where a stage stands in the order of a run."""
        return round, STAGES.index(stage)

    def is_finished(self, config: Config) -> bool:
        """Whether the last round is on record: the config's, or the one whose policy reached the target."""
        if self.manifest("recording", config.rounds) is not None:
            return True
        evaluations = self.manifests(("evaluation",)) if config.evaluation.target is not None else []
        return any(
            reaches_target(one, config) and self.manifest("recording", one.round) is not None for one in evaluations
        )

    def check(self, config: Config) -> Config:
        """The config, with what the run has settled where the config leaves it open (`learner.precision: auto`, …).

        Raises InputError if another config made this folder, or its config can no longer be read. Only `rounds` may
        change, since a run can be made longer, `memory_check`, and how an engine is run, but not which one.
        """
        self.check_place()
        check_entries(self.path)
        if self.protocol.exists():
            raise InputError(f"{self.path}: holds an evaluation; give another --run-dir")
        if not self.config.exists():
            return config
        try:
            found = read_section(self.config)
        except InputError as error:
            raise InputError(
                f"{error}; the run's config is corrupt: delete it and give the config that made the run"
            ) from error
        recorded = max((int(path.parent.name[6:]) for path in self.path.glob("facts/*/recording.json")), default=0)
        if config.rounds != found.get("rounds") and config.rounds <= recorded:
            raise InputError(
                f"{self.config}: rounds: {recorded} rounds are on record, and a run can be made longer but not "
                f"shorter; set rounds to {recorded + 1} or more, or start a new run"
            )
        config = _with_recorded(config, found)
        recorded_config, wanted = _with_defaults(found), config.model_dump(mode="json")
        differing = [name for name in _differences(recorded_config, wanted) if not _may_change(name)]
        if differing:
            raise InputError(
                f"{self.config}: made by another config ({', '.join(differing[:5])} differ); "
                "give another --run-dir, or the config that made it"
            )
        return config

    def check_place(self) -> None:
        """Raise InputError if nothing can be made here, or something stands here that reval did not make."""
        check_directory(self.path, self.option, _MARKS)

    def open(self, config: Config) -> None:
        """Make the folder this config's. Raises InputError if another config made it."""
        config = self.check(config)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        publish_file(self.config, lambda partial: partial.write_text(text, encoding="utf-8"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against a second process. The kernel frees it when the holder dies.

        Raises InputError naming the process that holds it, or what makes it no run directory.
        """
        check_entries(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made ({error.strerror}); give another place") from error
        with (self.path / "lock").open("a+") as file:
            deadline = time.monotonic() + _LOOK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() < deadline:  # somebody who asks for the holder holds it for a moment
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
        """The process that runs this run now, or None."""
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
        """Raise InputError if a process holds the folder now: what would be started for a run need not be."""
        if (holder := self.holder()) is not None:
            raise InputError(f"{self.path}: process {holder} is running it; wait for it or stop it")

    def free_bytes(self) -> int:
        """The bytes free on the disk that holds the folder."""
        existing = next(parent for parent in [self.path, *self.path.parents] if parent.exists())
        return shutil.disk_usage(existing).free


def existing_run(path: Path) -> RunDirectory:
    """The run in a folder. Raises InputError if there is none."""
    directory = RunDirectory(path)
    check_entries(directory.path)
    if not directory.config.exists():
        raise InputError(f"{path}: is no run folder (it has no config.yaml); `reval runs` lists them")
    return directory


class Attempt:
    """One process's stretch of work on a run: what wall time over several attempts is added up from."""

    def __init__(self, directory: RunDirectory) -> None:
        number = max((int(path.name[:4]) for path in directory.attempts.glob("*.json*")), default=0) + 1
        self._path = directory.attempts / f"{number:04d}.json"
        self._started = time.time()
        self.touch()

    def touch(self) -> None:
        """Note that work went on until now."""
        publish_json(self._path, {"started_at": self._started, "last_seen_at": time.time(), "pid": os.getpid()})


def reaches_target(evaluation: Manifest, config: Config) -> bool:
    """Whether an evaluation ends the run: its accuracy is `evaluation.target` or more."""
    target = config.evaluation.target
    return target is not None and bool(evaluation.info["accuracy"] >= target)


def wall_seconds(directory: RunDirectory) -> float:
    """The seconds of all attempts at a run together."""
    attempts = [read_json(path) for path in sorted(directory.attempts.glob("*.json"))]
    return sum(attempt["last_seen_at"] - attempt["started_at"] for attempt in attempts)


def _may_change(name: str) -> bool:
    return name in ("rounds", "memory_check") or (
        name.startswith("engine.") and name not in ("engine.kind", "engine.dtype")
    )


def _with_recorded(config: Config, found: dict[str, Any]) -> Config:
    """The config with what it leaves open and the run has settled."""
    learner, recorded = config.learner, found.get("learner")
    settled: dict[str, Any] = {}
    if isinstance(recorded, dict):
        if learner.precision == "auto" and recorded.get("precision") in ("float32", "bfloat16"):
            settled["precision"] = recorded["precision"]
        if learner.gradient_checkpointing is None and isinstance(recorded.get("gradient_checkpointing"), bool):
            settled["gradient_checkpointing"] = recorded["gradient_checkpointing"]
    return config.model_copy(update={"learner": learner.model_copy(update=settled)}) if settled else config


def _with_defaults(found: Any) -> Any:
    """A recorded config with the settings that reval has had since, where it is still one."""
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
