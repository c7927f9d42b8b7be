"""Integrity check of a run: finds files that differ from what was recorded, and quarantines them."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reval_core.atomic_files import (
    CHECKSUMS,
    PARTIAL,
    check_directory,
    file_digest,
    publish_json,
    quarantine,
    read_json,
    read_sealed,
)
from reval_core.config import Config, ImportedRollouts, Rollouts
from reval_core.errors import CorruptData
from reval_core.learning.checkpoints import reference_round, residuals_left, retained_checkpoints
from reval_core.problems.recorded import read_prompts
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest, read_manifest

log = logging.getLogger("reval")

_NOTE = "check.json"


@dataclass(frozen=True)
class Damage:
    """A missing or corrupt file or directory of a run. `path` is relative to the run directory."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def inspect(directory: RunDirectory, config: Config, *, all_checkpoints: bool = True) -> list[Damage]:
    """Read all files of a run, and return those that are missing or differ from what was recorded.

    Args:
        directory: The run directory.
        config: The config of the run.
        all_checkpoints: Whether to read all checkpoints, which takes long for large models. If False, only those
            needed to resume are read (the newest and the reference's), and those known to be corrupt.

    Raises:
        CorruptData: If no manifest can be read at all.
    """
    manifests, corrupt = _readable_manifests(directory)
    damages = [
        *corrupt,
        *_missing_manifests(directory, config, manifests, {one.path for one in corrupt}),
        *_corrupt_notes(directory),
        *_corrupt_files(directory, manifests),
        *_corrupt_checkpoints(directory, config, manifests, all_checkpoints),
    ]
    return sorted(damages, key=lambda damage: damage.path)


def clear(directory: RunDirectory, config: Config) -> list[Damage]:
    """Quarantine all corrupt files, and delete partial files of a killed attempt.

    The stages then find their files missing and regenerate them.

    Returns:
        The files that were missing or corrupt.

    Raises:
        CorruptData: If a file is corrupt that no stage can regenerate.
    """
    for path in list(directory.path.rglob(f"*{PARTIAL}")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    damages = inspect(directory, config, all_checkpoints=False)
    for damage in damages:
        if damage.path.startswith("pruned-"):
            raise CorruptData(
                f"{directory.path}/{damage}; after pruning it cannot be regenerated: restore it from a backup"
            )
    for damage in damages:
        path = directory.path / damage.path
        if path.exists():
            quarantine(path)
            log.warning("%s; it is quarantined, and regenerated if possible", damage)
        else:
            log.warning("%s; it is regenerated if possible", damage)
    return damages


def _readable_manifests(directory: RunDirectory) -> tuple[list[Manifest], list[Damage]]:
    manifests, corrupt, relocate = [], [], directory.pointer()
    for path in directory.manifest_paths():
        try:
            manifest = read_manifest(path)
            if manifest is not None:
                manifests.append(relocate(manifest))
        except CorruptData as error:
            corrupt.append(_damage(directory, path, error))
    if len(corrupt) > 2 and not manifests:
        raise CorruptData(
            f"{directory.path}: none of its {len(corrupt)} manifests can be read; it was made by another version "
            "of reval, or copied incompletely. Nothing was changed"
        )
    return manifests, corrupt


def _missing_manifests(
    directory: RunDirectory, config: Config, manifests: Iterable[Manifest], known: set[str]
) -> Iterator[Damage]:
    """Stages without a manifest although a later stage has one."""
    present = {(manifest.round, manifest.stage) for manifest in manifests}
    last = max((directory.place(stage, round) for round, stage in present), default=(0, 0))
    left = residuals_left(manifests)
    for round in range(last[0] + 1):
        for stage in _due(config, round, config.reference.reset_after(round, left.get(round))):
            path = directory.manifest_path(stage, round)
            missing = (round, stage) not in present and directory.place(stage, round) < last
            if missing and str(path.relative_to(directory.path)) not in known:
                yield _damage(directory, path, "is missing")


def _due(config: Config, round: int, reset: bool) -> list[str]:
    """The stages that every finished round has; the last round or a best round may have more."""
    made = ["rollouts", "verification", "consistency"]
    generates = isinstance(config.rollouts, Rollouts)
    if round == 0:
        imports = isinstance(config.rollouts, ImportedRollouts)
        return ["warm_start", *([] if generates else made), *([] if imports else ["evaluation"])]
    sometimes = {
        "evaluation": round % config.evaluation.every == 0,
        "checkpoint": reset or round % config.checkpoints.every == 0,
        "reference_reset": reset,
    }
    always = [*(made if generates else []), "sampling", "learning", "recording"]
    return always + [stage for stage, due in sometimes.items() if due]


def _corrupt_notes(directory: RunDirectory) -> Iterator[Damage]:
    sealed = [
        directory.machine,
        directory.stored,
        directory.prompts.with_suffix(".json"),
        directory.path / "prefect.json",
        *directory.path.glob("rollouts/round=?????/shard-*.json"),
        *directory.path.glob("rollouts/round=?????/judged-*.json"),
    ]
    plain = [directory.summary, directory.path / "mlflow.json", directory.path / _NOTE]
    readers: list[tuple[Callable[[Path], object], list[Path]]] = [
        (read_sealed, sealed),
        (read_prompts, [directory.prompts]),
        (read_json, [*plain, *directory.attempts.glob("*.json")]),
    ]
    for read, paths in readers:
        for path in paths:
            if path.exists():
                try:
                    read(path)
                except CorruptData as error:
                    yield _damage(directory, path, error)


def _corrupt_files(directory: RunDirectory, manifests: Iterable[Manifest]) -> Iterator[Damage]:
    # After pruning the manifests of many rounds list one file.
    listed = {file.path: file.sha256 for manifest in manifests for file in manifest.files}
    for name, sha256 in listed.items():
        path = directory.path / name
        if not path.exists():
            yield Damage(name, "is missing")
        elif file_digest(path) != sha256:
            yield Damage(name, "differs from what was written (its checksum does not match)")


def _corrupt_checkpoints(
    directory: RunDirectory, config: Config, manifests: list[Manifest], read_all: bool
) -> Iterator[Damage]:
    if not any(manifest.stage == "warm_start" for manifest in manifests):
        return
    retained = retained_checkpoints(manifests, config)
    read = retained if read_all else {max(retained), reference_round(manifests, config), *_noted(directory)}
    paths = {directory.checkpoint(round): round in read for round in sorted(retained)}
    if config.model.lora is not None:
        paths[directory.base] = True
    paths |= dict.fromkeys(directory.averages(), True)
    for path, is_read in paths.items():
        if not path.exists():
            yield _damage(directory, path, "is missing")
        elif is_read:
            try:
                check_directory(path)
            except CorruptData as error:
                yield _damage(directory, path, error)
            else:
                if _unusable(directory).get(path.name) == file_digest(path / CHECKSUMS):
                    yield _damage(directory, path, "could not be loaded, although its checksums match")


def corrupt_checkpoints(damages: Iterable[Damage]) -> list[int]:
    """The rounds whose checkpoints are among these damages."""
    return [int(one.path[-5:]) for one in damages if re.fullmatch(r"checkpoints/round=\d{5}", one.path)]


def note_checkpoints(directory: RunDirectory, rounds: list[int]) -> None:
    """Record which checkpoints are corrupt, for the next start, which does not read all checkpoints."""
    publish_json(directory.path / _NOTE, {"damaged_checkpoints": rounds, "unusable": _unusable(directory)})


def note_unloaded(directory: RunDirectory, round: int) -> None:
    """Record that a checkpoint could not be loaded, so that the next start quarantines it.

    Its checksums may match. They are recorded with it, so that a copy restored from a backup is used again.
    """
    path = directory.checkpoint(round)
    try:
        check_directory(path)
        unusable = {path.name: file_digest(path / CHECKSUMS)}
    except CorruptData:
        unusable = {}
    publish_json(directory.path / _NOTE, {"damaged_checkpoints": [round], "unusable": unusable})


def _noted(directory: RunDirectory) -> list[int]:
    """The rounds whose checkpoints were found corrupt before."""
    found = _note(directory).get("damaged_checkpoints")
    return found if isinstance(found, list) else []


def _unusable(directory: RunDirectory) -> dict[str, str]:
    """For each checkpoint that could not be loaded, by name: the digest of its checksums."""
    found = _note(directory).get("unusable")
    return found if isinstance(found, dict) else {}


def _note(directory: RunDirectory) -> dict[str, Any]:
    try:
        return read_json(directory.path / _NOTE) if (directory.path / _NOTE).exists() else {}
    except CorruptData:  # reported by _corrupt_notes
        return {}


def _damage(directory: RunDirectory, path: Path, reason: str | CorruptData) -> Damage:
    """The message of an error starts with the path itself or with that of a file in it, which is removed."""
    message = str(reason).removeprefix(f"{path}: ").removeprefix(f"{path}/")
    return Damage(str(path.relative_to(directory.path)), message)
