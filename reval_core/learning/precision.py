"""The precision that a learner computes in, where its settings leave it open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from reval_core.config import Learner


def default_precision() -> Literal["float32", "bfloat16"]:
    """bfloat16 on a GPU that supports it, float32 elsewhere."""
    # Emulated bfloat16 would be slower than float32.
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if on_gpu else "float32"


def settled_learner(settings: Learner) -> Learner:
    """The settings with `precision: auto` resolved for this machine, and gradient checkpointing off if not given.

    A run decides on gradient checkpointing before, from its memory estimate (see `resolution`).
    """
    settled: dict[str, str | bool] = {}
    if settings.precision == "auto":
        settled["precision"] = default_precision()
    if settings.gradient_checkpointing is None:
        settled["gradient_checkpointing"] = False
    return settings.model_copy(update=settled) if settled else settings
