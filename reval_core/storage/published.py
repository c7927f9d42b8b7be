"""The published files of a run directory that resuming needs, and what each record says of other files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from reval_core.atomic_files import CHECKSUMS, CORRUPT, PARTIAL

_FILES = frozenset(
    {
        "config.yaml",
        "machine.json",
        "prompts.parquet",
        "prompts.json",
        "stored.json",
        "summary.json",
        "report.html",
        "mlflow.json",
        "prefect.json",
    }
)
_DIRECTORIES = ("attempts", "rollouts", "facts", "checkpoints")
"""The databases and caches are rebuilt. Whatever else is in a run directory is not part of the run."""

Digests = Mapping[str, tuple[str, ...]]
"""The sha256 that a record accepts for each of the files that it names, by path."""


@dataclass(frozen=True)
class Stamp:
    """What changes when a file is replaced."""

    size: int
    modified: int
    """In nanoseconds."""
    inode: int


def published_files(directory: Path) -> dict[str, Stamp]:
    """The published files of a run by their path relative to its directory, with `/`."""
    found: dict[str, Stamp] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name in _FILES and (stamp := _stamp(entry)):
                found[entry.name] = stamp
            elif entry.name in _DIRECTORIES or _is_pruned(entry.name):
                found.update(_below(entry.path, entry.name))
    return found


def is_published(path: str) -> bool:
    """Whether a path can be that of a published file: below a run directory, and not of what a run rebuilds."""
    place = PurePosixPath(path)
    top = place.parts[0] if place.parts else ""
    below = len(place.parts) > 1 and ".." not in place.parts and (top in _DIRECTORIES or _is_pruned(top))
    return path in _FILES or below


def is_record(path: str) -> bool:
    """Whether a file names other files with their digests: a manifest, a note on a file, a list of checksums."""
    place = PurePosixPath(path)
    return (
        place.name == CHECKSUMS
        or path == "prompts.json"
        or (place.parts[0] in ("rollouts", "facts") and place.suffix == ".json")
    )


def named(path: str, content: bytes, pruned_to: int) -> Digests:
    """The files that a record names, with their digests.

    Args:
        path: The path of the record, relative to the run directory.
        content: The content of the record.
        pruned_to: The last round whose files pruning has merged into others; 0 if the run was never pruned.

    Raises:
        ValueError: If the content is not a JSON object, or lacks what such a record has.
    """
    place = PurePosixPath(path)
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    try:
        return dict(_named(place, value, pruned_to))
    except (KeyError, TypeError) as error:
        raise ValueError(f"lacks {error}") from error


def round_of(path: str) -> int | None:
    """The round of a file in `rollouts` or `facts`; None for other files."""
    parts = PurePosixPath(path).parts
    return int(parts[1].partition("=")[2]) if parts[0] in ("rollouts", "facts") and len(parts) > 2 else None


def is_dropped(directory: Path, path: str, pruned_to: int) -> bool:
    """Whether a file that is absent from a run directory was deleted because the run no longer needs it.

    That holds for checkpoints, for notes of verdicts under way, and for what pruning has merged. Whatever else is
    absent was lost.
    """
    place = PurePosixPath(path)
    top = place.parts[0]
    if top == "checkpoints":
        return not (directory / top / place.parts[1]).exists()
    if _is_pruned(top):
        return int(top[-5:]) < pruned_to
    round = round_of(path)
    merged = round is not None and 0 < round <= pruned_to
    return place.name.startswith("judged-") or (merged and (place.suffix == ".parquet" or _is_note(place)))


def is_quarantined(directory: Path, path: str) -> bool:
    """Whether a file, or a directory that it was in, was found corrupt and renamed."""
    place = PurePosixPath(path)
    return any((directory / f"{one}{CORRUPT}").exists() for one in (place, *place.parents[:-1]))


def _named(place: PurePosixPath, value: dict[str, Any], pruned_to: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    round = round_of(str(place))
    if place.name == CHECKSUMS:
        yield from ((str(place.parent / name), (sha256,)) for name, sha256 in value.items())
    elif str(place) == "prompts.json":
        yield "prompts.parquet", tuple(value["sha256"])
    elif round is None or 0 < round <= pruned_to or place.name.startswith("judged-"):
        return
    elif _is_note(place):
        yield value["file"]["path"], (value["file"]["sha256"],)
    else:
        yield from ((file["path"], (file["sha256"],)) for file in value["files"])


def _is_note(place: PurePosixPath) -> bool:
    return place.name.startswith(("shard-", "judged-")) and place.suffix == ".json"


def _is_pruned(name: str) -> bool:
    return name.startswith("pruned-") and name[7:].isdecimal()


def _below(directory: str, name: str) -> Iterator[tuple[str, Stamp]]:
    try:
        with os.scandir(directory) as scanned:
            entries = list(scanned)
    except (FileNotFoundError, NotADirectoryError):  # the run deletes checkpoints meanwhile
        return
    for entry in entries:
        path = f"{name}/{entry.name}"
        if entry.name.endswith((PARTIAL, CORRUPT)):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, path)
        elif stamp := _stamp(entry):
            yield path, stamp


def _stamp(entry: os.DirEntry[str]) -> Stamp | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    regular = entry.is_file(follow_symlinks=False)
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino) if regular else None
