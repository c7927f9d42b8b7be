"""Checks of paths that a command writes to: names that all libraries can open, and directories that reval owns."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Collection
from pathlib import Path

from reval_core.errors import InputError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""A URL, also one that pathlib has removed a slash from. A scheme has two letters or more: `a:/b` is a path."""

_BIDIRECTIONAL = frozenset(["LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"])

_OF_A_DISK = frozenset({"lost+found", ".DS_Store", ".gitkeep"})
"""Entries of a directory that counts as empty."""

_DEEPEST = "rollouts/round=00000/shard-000.parquet.partial"


def local(path: str) -> str:
    """The path, unchanged. Raises ValueError for a URL, which would otherwise be taken for a local path."""
    if _URL.match(path):
        raise ValueError("is a URL, and only local paths are supported; download or mount it first")
    if "\0" in path:
        raise ValueError("contains a null character, which is not valid in a path")
    return path


def check_local(path: Path, option: str = "") -> None:
    """Raise InputError, naming the option that gave the path, for a URL."""
    try:
        local(str(path))
    except ValueError as error:
        given = re.sub(r":/+", "://", str(path), count=1)  # pathlib keeps only one of the slashes
        raise InputError(f"{option} {shown(given)}: {error}".lstrip()) from error


def check_directory(path: Path, option: str, own: Collection[str]) -> None:
    """Check that a command can create a directory and write to it, or that reval created it. Changes nothing.

    Args:
        path: the directory.
        option: the option that named it, for messages.
        own: names of entries that identify a directory as reval's own; an empty directory is accepted as well.

    Raises:
        InputError: for any other directory, for a name that DuckDB or a terminal cannot handle, and for a place
            that is not writable.
    """
    place = f"{option} {shown(str(path))}"
    _check_name(path.absolute(), place)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"{place}: is a link to {shown(os.readlink(path))}, which does not exist") from None
        mode = None
    except OSError as error:
        raise InputError(f"{place}: cannot be used ({error.strerror}); give another directory") from error
    if mode is not None and not stat.S_ISDIR(mode):
        raise InputError(f"{place}: is a file; give a directory")
    try:
        if mode is not None:
            _check_own(path, place, own)
        with os.scandir(_existing(path)):  # a directory that cannot be read cannot be resumed either
            pass
        os.lstat(path / _DEEPEST)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{place}: cannot be used ({error.strerror}); give another directory") from error
    check_writable(path, place)


def check_writable(path: Path, place: str) -> None:
    """Raise InputError, naming the place, unless a path can be created, or is a directory that can be written
    to."""
    parent = _existing(path)
    if not parent.is_dir():
        raise InputError(f"{place}: cannot be created, because {shown(str(parent))} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        where = "" if parent == path else f": {shown(str(parent))}"
        raise InputError(f"{place}: is not writable{where} (no permission, or a read-only file system)")


def shown(text: str) -> str:
    """A name as one line without characters that a terminal interprets."""
    return text if text.isprintable() else ascii(text)


def _check_name(path: Path, place: str) -> None:
    # DuckDB parses options after a question mark in a database's name, and reads a backslash as a slash.
    for letter in str(path):
        if letter in "?\\":
            raise InputError(f"{place}: has a {letter} in its path, which DuckDB cannot open; use another name")
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or _reorders(letter):
            raise InputError(
                f"{place}: has the character {letter!a} in its path, which is not printable; use another name"
            )


def _reorders(letter: str) -> bool:
    """Whether a character changes the display order of the text that follows."""
    return unicodedata.bidirectional(letter) in _BIDIRECTIONAL or letter in "\u200e\u200f\u061c"


def _check_own(path: Path, place: str, own: Collection[str]) -> None:
    found = sorted(set(os.listdir(path)) - _OF_A_DISK)
    if found and not set(own) & set(found):
        some = ", ".join(map(shown, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise InputError(f"{place}: contains {some}, not created by reval; give a new or an empty directory")


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that exists."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
