"""Compiled decoder layers: one graph for all batches, shared by scoring and learning. Depends only on torch.

By default torch.compile makes several graphs of a layer: for the first shape and for later ones, for one row and
for several, with and without gradients. Each rounds differently, which in bfloat16 is noise in every score. Here
the lengths are dynamic from the first call, and scoring runs the forward pass of learning and discards its
gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

_GRAPHS = 64
"""The maximum number of graphs of a layer, over all models of a process. Beyond torch's default of 8, layers would
run uncompiled."""


_LENGTHS = {2: (1,), 3: (1,), 4: (2, 3)}
"""The dimensions of a tensor that are the row length, by its number of dimensions."""


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Compile each of these layers when it first runs. Layers of one class share their graph."""
    limit: dict[str, Any] = {"recompile_limit": _GRAPHS}
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:  # torch before 2.13
        torch._dynamo.config.recompile_limit, limit = _GRAPHS, {}
    # By default the most recent graph is tried first, so a checkpointed layer might be recomputed by another graph
    # than that of its forward pass (https://github.com/pytorch/pytorch/issues/166926).
    torch._C._dynamo.eval_frame._set_lru_cache(False)  # type: ignore[attr-defined]
    for layer in layers:
        layer._compiled_call_impl = _one_graph(torch.compile(layer._call_impl, **limit))


def _one_graph(compiled: Callable[..., Any]) -> Callable[..., Any]:
    def call(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        learning = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            hidden_states, args, kwargs = tree_map_only(Tensor, _trainable, (hidden_states, args, kwargs))
            if not (learning and hidden_states.requires_grad):
                hidden_states = hidden_states.detach().requires_grad_()
            _mark_lengths(hidden_states, (args, kwargs))
            outputs = compiled(hidden_states, *args, **kwargs)
        return outputs if learning else tree_map_only(Tensor, Tensor.detach, outputs)

    return call


def _trainable(tensor: Tensor) -> Tensor:
    """A tensor that a graph with gradients accepts; inference tensors must be copied."""
    return tensor.clone() if tensor.is_inference() else tensor


def _mark_lengths(hidden_states: Tensor, others: Any) -> None:
    """Mark the dimensions of a layer's inputs that change from batch to batch as dynamic for torch.compile.

    Args:
        hidden_states: [rows, length, width].
        others: The other inputs: position tensors [1, length, …], masks [rows, 1, length, length], and vectors of
            any length.
    """
    rows, length = hidden_states.shape[:2]
    for tensor in (hidden_states, *tree_leaves(others)):
        if isinstance(tensor, Tensor):
            dynamic = dict.fromkeys(_LENGTHS.get(tensor.ndim, ()), length)
            dynamic[0] = len(tensor) if tensor.ndim == 1 else rows
            for dim, size in dynamic.items():
                if tensor.shape[dim] == size > 1:  # torch makes a separate graph for one row
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
