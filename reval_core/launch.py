"""How this process was launched: one of how many, as `accelerate launch` and torchrun tell it."""

from __future__ import annotations

import os


def count() -> int:
    """How many processes were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that runs the pipeline."""
    return int(os.environ.get("RANK", "0")) == 0
