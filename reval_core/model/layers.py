"""A model's decoder layers: checkpointed, compiled, or as they are. Needs torch and transformers alone."""

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
    """The layers that are checkpointed and compiled one by one."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def checkpointed_layers(model: PreTrainedModel) -> Iterator[None]:
    """Keep no activations inside the layers; the backward pass computes them again.

    transformers checkpoints only layers in training mode. Here the mode is set on the layers alone, not on what is
    inside them, so dropout stays off; `check_scoring` refuses models whose layers apply it themselves.
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
    """Let a loaded model read packed rows and compile its layers, as a learner's settings say.

    Compiled layers read padded rows end to end too: as [1, places, width] they round alike for one row and several.
    """
    if packed or (compiled and model.config._attn_implementation == "sdpa" and fault_of(model) is None):
        read_packed_rows(model)
    if compiled:
        _announce()
        compile_layers(decoder_layers(model))


@cache
def _announce() -> None:
    """Once a process."""
    log.warning(
        "the model's layers are compiled: the first micro-batches take up to a minute longer each (learner.compile)"
    )


@contextmanager
def as_loaded(model: nn.Module) -> Iterator[None]:
    """Run the model without compiled layers and with the attention that it was loaded with.

    Generation with its cache has another shape at every token, and masks.
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
