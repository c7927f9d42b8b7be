"""The rank of this process and the number of processes, as set by `accelerate launch` or torchrun."""

from __future__ import annotations

import os


def count() -> int:
    """The number of processes that were launched, on all hosts."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that runs the pipeline."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of its host, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_count() -> int:
    """The number of processes that were launched on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(count())))
