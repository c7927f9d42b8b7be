"""Publishing files whole or not at all, and the digests that name their contents."""

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
"""The ending of what is still being written. Nothing reads such a file."""

CORRUPT = ".damaged"
"""The ending of what was found damaged and set aside. Nothing reads such a file."""

CHECKSUMS = "checksums.json"
"""In a published folder: the sha256 of every other file in it."""


def digest(*parts: object) -> str:
    """The sha256 (hex) of a canonical JSON of `parts`: equal values give equal digests in every process.

    Raises TypeError for anything that JSON cannot hold, so that no live object slips into a key.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour of `path`, then put it in place by one rename.

    After a crash `path` is either whole or absent: the bytes reach the disk before the name does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)  # a link left under that name would lead the write elsewhere
    try:
        write(partial)
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def publish_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder beside `path`, then put it in place by one rename, with its checksums.

    A folder of that name that stands already is replaced.
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
    """Delete a published folder: a crash leaves it whole or gone."""
    doomed = path.with_name(f"{path.name}.old{PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def check_directory(path: Path) -> None:
    """Raise Damaged, naming the first file at fault, unless a published folder holds what was written."""
    recorded = read_json(path / CHECKSUMS)
    found = _checksums(path)
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            raise CorruptData(f"{path / name}: is gone")
        if found[name] != recorded.get(name):
            raise CorruptData(f"{path / name}: is not what was written")


def set_aside(path: Path) -> None:
    """Rename something damaged, so that nothing reads it and nothing is lost with it."""
    aside = path.with_name(path.name + CORRUPT)
    if aside.is_dir():
        shutil.rmtree(aside)
    os.replace(path, aside)


def publish_json(path: Path, value: Mapping[str, Any]) -> None:
    """Publish `value` as indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    publish_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


class Record(dict[str, Any]):
    """A JSON object with the file that it was read from. A key that it lacks raises Damaged, which names both."""

    def __init__(self, values: Any = (), path: Path | None = None) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise CorruptData(f"{self._path}: has no {key!r}")


def read_json(path: Path) -> Record:
    """The object in a JSON file. Raises Damaged, naming the file, if it is gone or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptData(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise CorruptData(f"{path}: holds no JSON object")
    return Record(value, path)


def publish_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Publish `value` as JSON with its own digest, so that a changed byte is noticed."""
    publish_json(path, {**value, "sealed": digest(value)})


def read_sealed(path: Path) -> Record:
    """What `publish_sealed` wrote. Raises Damaged, naming the file, if it is gone or was changed."""
    value = read_json(path)
    if value.pop("sealed", None) != digest(value):
        raise CorruptData(f"{path}: is not what was written (its seal differs)")
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
