"""Where a command may write: the names that everything below reval can open, and directories that are its own."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Collection
from pathlib import Path

from reval_core.errors import InputError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""A URL, also one that pathlib has taken a slash from. A scheme has two letters or more: `a:/b` is a path."""

_BIDIRECTIONAL = frozenset(["LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"])

_OF_A_DISK = frozenset({"lost+found", ".DS_Store", ".gitkeep"})
"""What stands in a directory that is empty to its owner."""

_DEEPEST = "rollouts/round=00000/shard-000.parquet.partial"


def local(path: str) -> str:
    """The path. Raises ValueError for a URL, which as a path would be made or looked for here."""
    if _URL.match(path):
        raise ValueError("is a URL, and only local paths are supported; copy it here, or mount it")
    if "\0" in path:
        raise ValueError("holds a null character, and no path does")
    return path


def check_local(path: Path, option: str = "") -> None:
    """Raise InputError, naming the option that gave the path, for a URL."""
    try:
        local(str(path))
    except ValueError as error:
        given = re.sub(r":/+", "://", str(path), count=1)  # of its slashes pathlib keeps one
        raise InputError(f"{option} {shown(given)}: {error}".lstrip()) from error


def check_directory(path: Path, option: str, own: Collection[str]) -> None:
    """See that a command can make a directory and write in it, or that it is one of its own. Changes nothing.

    A directory is the command's own if it holds one of the names in `own`, or nothing. Raises InputError for any
    other, for a name that DuckDB or a terminal cannot take, and for a place that cannot be written to.
    """
    place = f"{option} {shown(str(path))}"
    _check_name(path.absolute(), place)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"{place}: is a link to {shown(os.readlink(path))}, which is not there") from None
        mode = None
    except OSError as error:
        raise InputError(f"{place}: cannot be used ({error.strerror}); give another directory") from error
    if mode is not None and not stat.S_ISDIR(mode):
        raise InputError(f"{place}: is a file; give a directory")
    try:
        if mode is not None:
            _check_own(path, place, own)
        with os.scandir(_existing(path)):  # what may not be read may not be resumed either
            pass
        os.lstat(path / _DEEPEST)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{place}: cannot be used ({error.strerror}); give another directory") from error
    check_writable(path, place)


def check_writable(path: Path, place: str) -> None:
    """Raise InputError, naming the place, unless something can be made at a path, or in it if it is a directory."""
    parent = _existing(path)
    if not parent.is_dir():
        raise InputError(f"{place}: cannot be made, because {shown(str(parent))} is no directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        where = "" if parent == path else f" in {shown(str(parent))}"
        raise InputError(f"{place}: nothing can be written{where} (no permission, or a read-only disk)")


def shown(text: str) -> str:
    """A name as one line that a terminal does not act on."""
    return text if text.isprintable() else ascii(text)


def _check_name(path: Path, place: str) -> None:
    # DuckDB takes what follows a question mark in a database's name for options, and a backslash for a slash.
    for letter in str(path):
        if letter in "?\\":
            raise InputError(f"{place}: has a {letter} in its path, which DuckDB cannot open; give another name")
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or _turns(letter):
            raise InputError(
                f"{place}: has the character {letter!a} in its path, which is no text; give another name"
            )


def _turns(letter: str) -> bool:
    """Whether a character makes what follows stand in another order on a screen."""
    return unicodedata.bidirectional(letter) in _BIDIRECTIONAL or letter in "\u200e\u200f\u061c"


def _check_own(path: Path, place: str, own: Collection[str]) -> None:
    found = sorted(set(os.listdir(path)) - _OF_A_DISK)
    if found and not set(own) & set(found):
        some = ", ".join(map(shown, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise InputError(f"{place}: holds {some}, which reval did not make; give a new or an empty directory")


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
