"""Compiled decoder layers: one graph for every batch, for scoring and for learning alike. Needs torch alone.

torch.compile by itself makes several graphs of a layer: for the first shape and for others, for one row and for
several, with and without gradients. Each rounds in its own way, which in bfloat16 is noise in every score. Here the
lengths are dynamic from the first call on, and scoring runs learning's forward pass and lets its gradients go.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

_GRAPHS = 64
"""The most graphs of a layer, of all models of a process. At torch's own limit of 8 layers would begin to run
uncompiled."""


_LENGTHS = {2: (1,), 3: (1,), 4: (2, 3)}
"""Which sizes of a tensor are the length of rows, by how many it has."""


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Let torch compile each of these layers when it first runs. Layers of one kind share their graph."""
    limit: dict[str, Any] = {"recompile_limit": _GRAPHS}
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:  # torch before 2.13
        torch._dynamo.config.recompile_limit, limit = _GRAPHS, {}
    # By default the graph that ran last is tried first, so that a checkpointed layer might be computed again by
    # another graph than it ran by (https://github.com/pytorch/pytorch/issues/166926).
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
            found = compiled(hidden_states, *args, **kwargs)
        return found if learning else tree_map_only(Tensor, Tensor.detach, found)

    return call


def _trainable(tensor: Tensor) -> Tensor:
    """What torch lets a graph with gradients take; tensors of inference mode only as a copy."""
    return tensor.clone() if tensor.is_inference() else tensor


def _mark_lengths(hidden_states: Tensor, others: Any) -> None:
    """Tell torch.compile which sizes of a layer's input change from batch to batch.

    hidden_states: [rows, length, width]. others hold [1, length, …] of positions, masks [rows, 1, length, length],
    and vectors of any length.
    """
    rows, length = hidden_states.shape[:2]
    for tensor in (hidden_states, *tree_leaves(others)):
        if isinstance(tensor, Tensor):
            changing = dict.fromkeys(_LENGTHS.get(tensor.ndim, ()), length)
            changing[0] = len(tensor) if tensor.ndim == 1 else rows
            for place, size in changing.items():
                if tensor.shape[place] == size > 1:  # torch makes a graph of its own for one row
                    torch._dynamo.maybe_mark_dynamic(tensor, place)
