"""The decoder layers of a model: gradient checkpointing and compilation. Depends only on torch and transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from reval_core.model.compiled import compile_layers
from reval_core.model.packed import PREFIX, fault_of, read_packed_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("reval")


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that are checkpointed and compiled individually."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def checkpointed_layers(model: PreTrainedModel) -> Iterator[None]:
    """Enable gradient checkpointing of the layers inside the context.

    transformers checkpoints only layers in training mode. Here the mode is set on the layers but not on their
    submodules, so dropout stays off; `check_scoring` refuses models whose layers apply dropout themselves.
    """
    layers = decoder_layers(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        for layer in layers:
            layer.training = False


def set_up(model: PreTrainedModel, packed: bool, compiled: bool) -> None:
    """Prepare a loaded model for packed rows and compile its layers, as the learner's settings require.

    Compiled layers read padded rows end to end as well: as [1, tokens, width], one row and several round alike.
    """
    if packed or (compiled and model.config._attn_implementation == "sdpa" and fault_of(model) is None):
        read_packed_rows(model)
    if compiled:
        _warn_of_compilation()
        compile_layers(decoder_layers(model))


@cache
def _warn_of_compilation() -> None:
    """Warn once per process."""
    log.warning(
        "the model's layers are compiled: the first micro-batches each take up to a minute longer (learner.compile)"
    )


@contextmanager
def as_loaded(model: nn.Module) -> Iterator[None]:
    """Run the model uncompiled and with the attention that it was loaded with.

    Generation with a cache has another shape at every token, and needs masks.
    """
    config: Any = model.config
    compiled = {layer: layer._compiled_call_impl for layer in decoder_layers(model)}
    attention = config._attn_implementation
    for layer in compiled:
        layer._compiled_call_impl = None
    config._attn_implementation = attention and attention.removeprefix(PREFIX)
    try:
        yield
    finally:
        config._attn_implementation = attention
        for layer, call in compiled.items():
            layer._compiled_call_impl = call
