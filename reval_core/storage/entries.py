"""Check that a run directory contains only regular files and directories, none of which points elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from reval_core.errors import InputError

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def check_entries(directory: Path) -> None:
    """Check that a run directory contains only regular files and directories.

    A run directory may come from an untrusted source. reval renames, truncates and deletes files in it; through a
    link these would be files outside the directory, and reading a pipe blocks forever. The directory itself may be
    a link.

    Raises:
        InputError: If an entry is neither a file nor a directory; the message names the first one.
    """
    for path, kind in _foreign(directory):
        raise InputError(
            f"{path}: is {kind}, but a run directory may contain only regular files and directories; replace it "
            "with a copy of its target, or delete it (the run directory itself may be a link)"
        )


def _foreign(directory: Path) -> Iterator[tuple[Path, str]]:
    try:
        with os.scandir(directory) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # a running process may have deleted it in the meantime
        return
    except OSError as error:
        raise InputError(f"{directory}: cannot be read ({error.strerror})") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _foreign(Path(entry.path))
        elif not entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):
                kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
                yield Path(entry.path), _KINDS.get(kind, "not a regular file")
