"""Atomic publication of files and directories, and the digests that identify their contents."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reval_core.errors import CorruptData

PARTIAL = ".partial"
"""The suffix of files that are still being written. Nothing reads such a file."""

CORRUPT = ".damaged"
"""The suffix of corrupt files that were quarantined. Nothing reads such a file."""

CHECKSUMS = "checksums.json"
"""In a published directory: the sha256 of every other file in it."""


def digest(*parts: object) -> str:
    """The sha256 (hex) of `parts` as canonical JSON: equal values give equal digests in every process.

    Raises:
        TypeError: If a value cannot be represented in JSON, so that no live object ends up in a key.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_file(path: Path, write: Callable[[Path], object]) -> None:
    """Publish a file atomically: write to a temporary sibling, fsync, then rename.

    After a crash `path` is either complete or absent: the bytes reach the disk before the name does.

    Args:
        path: The final path.
        write: Called with the temporary path; writes the file there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)  # a link under that name would redirect the write
    try:
        write(partial)
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def publish_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Publish a directory atomically, with the checksums of its files. An existing directory is replaced.

    Args:
        path: The final path.
        write: Called with an empty temporary directory; writes the files into it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write(partial)
        text = json.dumps(_checksums(partial), indent=2) + "\n"
        (partial / CHECKSUMS).write_text(text, encoding="utf-8")
        for file in sorted(partial.rglob("*")):
            _sync(file)
        _sync(partial)
        if path.exists():
            remove_directory(path)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(path.parent)


def remove_directory(path: Path) -> None:
    """Delete a published directory: after a crash it is either complete or absent."""
    doomed = path.with_name(f"{path.name}.old{PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def check_directory(path: Path) -> None:
    """Check the files of a published directory against its checksums.

    Raises:
        CorruptData: If a file is missing or differs; the message names the first one.
    """
    recorded = read_json(path / CHECKSUMS)
    current = _checksums(path)
    for name in sorted(recorded.keys() | current.keys()):
        if name not in current:
            raise CorruptData(f"{path / name}: is missing")
        if current[name] != recorded.get(name):
            raise CorruptData(f"{path / name}: differs from what was written")


def quarantine(path: Path) -> None:
    """Rename a corrupt file or directory, so that nothing reads it and nothing is lost."""
    aside = path.with_name(path.name + CORRUPT)
    if aside.is_dir():
        shutil.rmtree(aside)
    os.replace(path, aside)


def publish_json(path: Path, value: Mapping[str, Any]) -> None:
    """Publish `value` as indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    publish_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


class Record(dict[str, Any]):
    """A JSON object and the file that it was read from. A missing key raises CorruptData, which names both."""

    def __init__(self, values: Any = (), path: Path | None = None) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise CorruptData(f"{self._path}: has no {key!r}")


def read_json(path: Path) -> Record:
    """Read a JSON object. Raises CorruptData, naming the file, if it is missing or contains something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptData(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise CorruptData(f"{path}: is not a JSON object")
    return Record(value, path)


def publish_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Publish `value` as JSON together with its digest, so that any later change is detected."""
    publish_json(path, {**value, "sealed": digest(value)})


def read_sealed(path: Path) -> Record:
    """Read what `publish_sealed` wrote. Raises CorruptData, naming the file, if it is missing or was changed."""
    value = read_json(path)
    if value.pop("sealed", None) != digest(value):
        raise CorruptData(f"{path}: differs from what was written (its seal does not match)")
    return value


def _checksums(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): file_digest(path) for path in files if path.name != CHECKSUMS}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
