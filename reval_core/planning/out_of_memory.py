"""What happens when a stage runs out of memory: the run stops and says what would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from reval_core.errors import RevalError, RunStopped, first_line

_SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",  # torch on a CPU
)
"""What libraries and other processes say of it in errors of every kind."""


@contextmanager
def explained_memory(title: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turn a lack of memory into RunStopped: trying again would end in the same way.

    title: the work, for people. advice: gives the settings that help, or nothing; called only then.
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
            f"{title}: out of memory ({first_line(error)[:200]}); close what else takes memory and give the same "
            f"command again{change}"
        ) from error


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is a lack of memory."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if any(sign in str(error) for sign in _SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False
