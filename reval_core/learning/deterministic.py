"""Kernels that give the same bits every time, for `learner.deterministic`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def announce_deterministic() -> None:
    """Set the environment variables that libraries read at their first computation: call before any kernel runs."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Use only deterministic kernels inside the context.

    An operation without one raises RuntimeError, which names the operation. The transformers engine uses one (a
    cumulative sum on a GPU), so this is for updates and not for the whole process.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    announce_deterministic()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
