"""Handling of out-of-memory errors: the run stops and names the settings that help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from reval_core.errors import RevalError, RunStopped, causes, first_line

_SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",  # torch on a CPU
)
"""Messages by which other libraries and processes report it in errors of any type."""


@contextmanager
def explained_memory(title: str, advice: Callable[[], str]) -> Iterator[None]:
    """Convert out-of-memory errors into RunStopped, since a retry would fail in the same way.

    Args:
        title: the work, for the message.
        advice: returns the settings that help, or an empty text; called only on an error.
    """
    try:
        yield
    except RevalError:
        raise
    except Exception as error:
        if not lacks_memory(error):
            raise
        settings = advice()
        change = (
            f", or {settings} (a run may change settings of its engine; others need a new run)" if settings else ""
        )
        raise RunStopped(
            f"{title}: out of memory ({first_line(error)[:200]}); free memory that other processes use and "
            f"run the same command again{change}"
        ) from error


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or one of its causes, is an out-of-memory error."""
    return any(
        isinstance(one, torch.OutOfMemoryError | MemoryError) or any(sign in str(one) for sign in _SIGNS)
        for one in causes(error)
    )
