"""The rank of this process and the number of processes, as set by `accelerate launch` or torchrun."""

from __future__ import annotations

import os


def count() -> int:
    """The number of processes that were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that runs the pipeline."""
    return int(os.environ.get("RANK", "0")) == 0
