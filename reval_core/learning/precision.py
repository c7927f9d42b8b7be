"""What a learner computes in where its settings leave that open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from reval_core.errors import InputError

if TYPE_CHECKING:
    from reval_core.config import Config, Learner


def default_precision() -> Literal["float32", "bfloat16"]:
    """bfloat16 on a GPU that computes in it, float32 elsewhere."""
    # Without emulation: that would be slower than float32.
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if on_gpu else "float32"


def with_precision(config: Config) -> Config:
    """The config with `learner.precision` as it is on this machine, where it is `auto`.

    Raises InputError if the model's attention cannot compute in that.
    """
    settled, attention = settled_learner(config.learner), config.model.attention or ""
    if attention.startswith("flash") and settled.precision == "float32":
        raise InputError(
            f"model.attention: {attention} computes in bfloat16, and learner.precision: auto is float32 here; "
            "leave attention out, or run on a GPU that has bfloat16"
        )
    return config if settled is config.learner else config.model_copy(update={"learner": settled})


def settled_learner(settings: Learner) -> Learner:
    """The settings with `precision` as it is on this machine, where it is `auto`.

    Gradients are checkpointed where the settings say so: a run decides it by its memory (`planning.gpu_memory`).
    """
    settled: dict[str, str | bool] = {}
    if settings.precision == "auto":
        settled["precision"] = default_precision()
    if settings.gradient_checkpointing is None:
        settled["gradient_checkpointing"] = False
    return settings.model_copy(update=settled) if settled else settings
