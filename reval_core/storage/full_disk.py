"""Handling of a full disk: the run stops and says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from reval_core.errors import RevalError, RunStopped, causes
from reval_core.storage.run_directory import RunDirectory


@contextmanager
def explained_disk(directory: RunDirectory) -> Iterator[None]:
    """Context manager that turns errors caused by a full disk into RunStopped with a remedy."""
    try:
        yield
    except RevalError:
        raise
    except Exception as error:
        if not any(_is_full_disk(one) for one in causes(error)):
            raise
        raise RunStopped(
            f"{directory.path}: the disk is full ({directory.free_bytes() / 1e6:,.0f} MB free); free some space "
            "and run the same command again: finished work is kept"
        ) from error


def _is_full_disk(error: BaseException) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        sign in str(error) for sign in ("No space left on device", "Disk quota exceeded")
    )
