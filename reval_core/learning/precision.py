"""The precision that a learner computes in, where its settings leave it open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from reval_core.errors import InputError

if TYPE_CHECKING:
    from reval_core.config import Config, Learner


def default_precision() -> Literal["float32", "bfloat16"]:
    """bfloat16 on a GPU that supports it, float32 elsewhere."""
    # Emulated bfloat16 would be slower than float32.
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if on_gpu else "float32"


def with_precision(config: Config) -> Config:
    """The config with `learner.precision: auto` resolved for this machine.

    Raises:
        InputError: The model's attention does not support that precision.
    """
    settled, attention = settled_learner(config.learner), config.model.attention or ""
    if attention.startswith("flash") and settled.precision == "float32":
        raise InputError(
            f"model.attention: {attention} computes in bfloat16, and learner.precision: auto is float32 here; "
            "leave attention out, or run on a GPU that has bfloat16"
        )
    return config if settled is config.learner else config.model_copy(update={"learner": settled})


def settled_learner(settings: Learner) -> Learner:
    """The settings with `precision: auto` resolved for this machine, and gradient checkpointing off if not given.

    A run decides on gradient checkpointing before, from its memory estimate (`planning.gpu_memory`).
    """
    settled: dict[str, str | bool] = {}
    if settings.precision == "auto":
        settled["precision"] = default_precision()
    if settings.gradient_checkpointing is None:
        settled["gradient_checkpointing"] = False
    return settings.model_copy(update=settled) if settled else settings
