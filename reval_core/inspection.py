"""Looking a run over: which of its files are not what was recorded, and setting those aside."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reval_core.checkpoints import reference_round, residuals_left, wanted_checkpoints
from reval_core.config import Config, ImportedRollouts, Rollouts
from reval_core.errors import Damaged
from reval_core.facts import Manifest, read_manifest
from reval_core.files import (
    CHECKSUMS,
    PARTIAL,
    check_folder,
    file_digest,
    publish_json,
    read_json,
    read_sealed,
    set_aside,
)
from reval_core.problems.recorded import read_prompts
from reval_core.run_folder import RunFolder

log = logging.getLogger("reval")

_NOTE = "check.json"


@dataclass(frozen=True)
class Damage:
    """A file or folder of a run that is gone or not what was recorded. `path` is relative to the run folder."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def inspect(folder: RunFolder, config: Config, *, all_checkpoints: bool = True) -> list[Damage]:
    """Everything in a run that is gone or not what was recorded, by reading all of it.

    The checkpoints of large models take long to read: without `all_checkpoints` only those are read that a run
    goes on from, the newest and the reference's, and those in which damage was noted before.
    Raises Damaged if no manifest can be read at all.
    """
    manifests, damaged = _readable_manifests(folder)
    found = [
        *damaged,
        *_missing_manifests(folder, config, manifests, {one.path for one in damaged}),
        *_damaged_notes(folder),
        *_damaged_files(folder, manifests),
        *_damaged_checkpoints(folder, config, manifests, all_checkpoints),
    ]
    return sorted(found, key=lambda damage: damage.path)


def clear(folder: RunFolder, config: Config) -> list[Damage]:
    """Set everything damaged aside, and delete what a killed attempt had half written. Returns what was damaged.

    The stages then find their files gone and make them again. Raises Damaged where no stage could.
    """
    for path in list(folder.path.rglob(f"*{PARTIAL}")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    damages = inspect(folder, config, all_checkpoints=False)
    for damage in damages:
        if damage.path.startswith("pruned-"):
            raise Damaged(f"{folder.path}/{damage}; after pruning it cannot be made again: put back a copy")
    for damage in damages:
        path = folder.path / damage.path
        if path.exists():
            set_aside(path)
            log.warning("%s; it is set aside, and made again if that can be done", damage)
        else:
            log.warning("%s; it is made again if that can be done", damage)
    return damages


def _readable_manifests(folder: RunFolder) -> tuple[list[Manifest], list[Damage]]:
    manifests, damaged, pointing = [], [], folder.pointer()
    for path in folder.manifest_paths():
        try:
            manifest = read_manifest(path)
            if manifest is not None:
                manifests.append(pointing(manifest))
        except Damaged as error:
            damaged.append(_damage(folder, path, error))
    if len(damaged) > 2 and not manifests:
        raise Damaged(
            f"{folder.path}: none of its {len(damaged)} manifests can be read; another version of reval made it or "
            "it was copied in part. Nothing was changed"
        )
    return manifests, damaged


def _missing_manifests(
    folder: RunFolder, config: Config, manifests: Iterable[Manifest], known: set[str]
) -> Iterator[Damage]:
    """Stages that have left nothing although something later stands."""
    present = {(manifest.round, manifest.stage) for manifest in manifests}
    last = max((folder.place(stage, round) for round, stage in present), default=(0, 0))
    left = residuals_left(manifests)
    for round in range(last[0] + 1):
        for stage in _due(config, round, config.reference.reset_after(round, left.get(round))):
            path = folder.manifest_path(stage, round)
            missing = (round, stage) not in present and folder.place(stage, round) < last
            if missing and str(path.relative_to(folder.path)) not in known:
                yield _damage(folder, path, "is gone")


def _due(config: Config, round: int, reset: bool) -> list[str]:
    """The stages that every finished round has; a last or a best round may have more."""
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


def _damaged_notes(folder: RunFolder) -> Iterator[Damage]:
    sealed = [
        folder.machine,
        folder.stored,
        folder.prompts.with_suffix(".json"),
        folder.path / "prefect.json",
        *folder.path.glob("rollouts/round=?????/shard-*.json"),
        *folder.path.glob("rollouts/round=?????/judged-*.json"),
    ]
    plain = [folder.summary, folder.path / "mlflow.json", folder.path / _NOTE]
    readers: list[tuple[Callable[[Path], object], list[Path]]] = [
        (read_sealed, sealed),
        (read_prompts, [folder.prompts]),
        (read_json, [*plain, *folder.attempts.glob("*.json")]),
    ]
    for read, paths in readers:
        for path in paths:
            if path.exists():
                try:
                    read(path)
                except Damaged as error:
                    yield _damage(folder, path, error)


def _damaged_files(folder: RunFolder, manifests: Iterable[Manifest]) -> Iterator[Damage]:
    # After pruning the manifests of many rounds list one file.
    listed = {file.path: file.sha256 for manifest in manifests for file in manifest.files}
    for name, sha256 in listed.items():
        path = folder.path / name
        if not path.exists():
            yield Damage(name, "is gone")
        elif file_digest(path) != sha256:
            yield Damage(name, "is not what was written (its checksum differs)")


def _damaged_checkpoints(
    folder: RunFolder, config: Config, manifests: list[Manifest], read_all: bool
) -> Iterator[Damage]:
    if not any(manifest.stage == "warm_start" for manifest in manifests):
        return
    wanted = wanted_checkpoints(manifests, config)
    read = wanted if read_all else {max(wanted), reference_round(manifests, config), *_noted(folder)}
    paths = {folder.checkpoint(round): round in read for round in sorted(wanted)}
    if config.model.lora is not None:
        paths[folder.base] = True
    paths |= dict.fromkeys(folder.averages(), True)
    for path, is_read in paths.items():
        if not path.exists():
            yield _damage(folder, path, "is gone")
        elif is_read:
            try:
                check_folder(path)
            except Damaged as error:
                yield _damage(folder, path, error)
            else:
                if _unusable(folder).get(path.name) == file_digest(path / CHECKSUMS):
                    yield _damage(folder, path, "could not be loaded, although its checksums fit")


def damaged_checkpoints(damages: Iterable[Damage]) -> list[int]:
    """The rounds whose checkpoints are among these."""
    return [int(one.path[-5:]) for one in damages if re.fullmatch(r"checkpoints/round=\d{5}", one.path)]


def note_checkpoints(folder: RunFolder, rounds: list[int]) -> None:
    """Note which checkpoints were found damaged, for the next start, which does not read all of them."""
    publish_json(folder.path / _NOTE, {"damaged_checkpoints": rounds, "unusable": _unusable(folder)})


def note_unloaded(folder: RunFolder, round: int) -> None:
    """Note that a checkpoint could not be loaded, so that the next start quarantines it, even if its checksums fit.

    The checksums are noted with it: a copy that is put back in its place is used.
    """
    path = folder.checkpoint(round)
    try:
        check_folder(path)
        unusable = {path.name: file_digest(path / CHECKSUMS)}
    except Damaged:
        unusable = {}
    publish_json(folder.path / _NOTE, {"damaged_checkpoints": [round], "unusable": unusable})


def _noted(folder: RunFolder) -> list[int]:
    """The rounds in whose checkpoints damage was found."""
    found = _note(folder).get("damaged_checkpoints")
    return found if isinstance(found, list) else []


def _unusable(folder: RunFolder) -> dict[str, str]:
    """By a checkpoint's name, the digest of the checksums of what could not be loaded."""
    found = _note(folder).get("unusable")
    return found if isinstance(found, dict) else {}


def _note(folder: RunFolder) -> dict[str, Any]:
    try:
        return read_json(folder.path / _NOTE) if (folder.path / _NOTE).exists() else {}
    except Damaged:  # it is named among the damaged notes
        return {}


def _damage(folder: RunFolder, path: Path, reason: str | Damaged) -> Damage:
    """An error begins with the path itself, or with that of a file in it."""
    said = str(reason).removeprefix(f"{path}: ").removeprefix(f"{path}/")
    return Damage(str(path.relative_to(folder.path)), said)
