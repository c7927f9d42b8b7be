"""What a run directory may consist of: regular files and directories, so that nothing in it leads elsewhere."""

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
    """Raise InputError, naming the first, if anything in a run directory is neither a file nor a directory.

    A run directory may come from somebody else. reval renames, truncates and deletes files in it, which through a
    link would be the owner's files elsewhere, and reading a pipe never ends. The directory itself may be a link.
    """
    for path, kind in _foreign(directory):
        raise InputError(
            f"{path}: is {kind}, and a run directory holds only regular files and directories; replace it by a "
            "copy of what it stands for, or delete it (the run directory itself may be a link)"
        )


def _foreign(directory: Path) -> Iterator[tuple[Path, str]]:
    try:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # a run that is being written may have deleted it just now
        return
    except OSError as error:
        raise InputError(f"{directory}: cannot be read ({error.strerror})") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _foreign(Path(entry.path))
        elif not entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):
                kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
                yield Path(entry.path), _KINDS.get(kind, "no regular file")
