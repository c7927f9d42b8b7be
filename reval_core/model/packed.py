"""Attention over packed rows: texts end to end in one row, of which each token sees its own text's earlier ones.

transformers' sdpa and eager attention would take a mask of all pairs of places for them. Here no such mask exists:
torch's kernel for texts of unequal length runs on CUDA in half precision, elsewhere one text after the other.
Needs torch and transformers alone.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from reval_core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "packed|"
"""This attention's name in transformers begins so and ends with the attention that it takes the place of. It has no
mask function, so transformers makes no mask for it."""

_WITH_MASK = ("sdpa", "eager")
"""Those of transformers' implementations that keep packed texts apart by a mask of all pairs of places."""

_HALF = (torch.bfloat16, torch.float16)

_UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some families ask of attention beside scaling and a window."""

# torch 2.11 takes fewer heads for keys than for queries without being told.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

_WIDEST = 256
"""The largest head of torch's kernel."""


def read_packed_rows(model: nn.Module) -> None:
    """Let a transformers model read packed rows without a mask from now on.

    It generates only within `layers.as_loaded`.
    """
    from transformers import AttentionInterface

    config: Any = model.config
    if config._attn_implementation in _WITH_MASK:
        AttentionInterface.register(PREFIX + config._attn_implementation, attend)
        config._attn_implementation = PREFIX + config._attn_implementation


def reads_packed_rows(model: nn.Module) -> bool:
    """Whether a model's attention is this one."""
    config: Any = model.config
    return str(config._attn_implementation).startswith(PREFIX)


def fault_of(model: PreTrainedModel) -> str | None:
    """What a model's architecture needs of attention that packed rows cannot have, if anything."""
    cap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if not model._supports_attention_backend:
        return "does not leave its attention to transformers' interface"
    if cap:
        return f"caps its attention scores (attn_logit_softcapping: {cap})"
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        return "has attention sinks"
    return None


def check_packed(model: PreTrainedModel) -> None:
    """Raise InputError if a model's architecture needs what attention over packed rows cannot do, naming that."""
    if (fault := fault_of(model)) is not None:
        raise InputError(
            f"learner.packed: {type(model).__name__} {fault}, which packed rows cannot have; "
            "set learner.packed: false"
        )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    rows: Tensor | None = None,
    longest: Tensor | None = None,
    is_causal: bool = True,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' models call it: query [1, heads, T, size] to [1, T, heads, size].

    Texts lie end to end in one row: of unequal lengths, with cu_seq_lens_q [B + 1] where they begin and end, or as
    many as `rows` [R + 1] says, each padded to one length. `longest` [L] is as long as the longest. Of both only
    the sizes count, which torch.compile takes for dynamic, where it would make a graph for every number.
    Without either, each row of [R, heads, L, size] is a text. Raises InputError for what this attention cannot do.
    """
    _refuse(module, others, is_causal)
    if cu_seq_lens_q is None:
        if rows is not None and longest is not None:
            query, key, value = (_as_rows(one, len(rows) - 1, len(longest)) for one in (query, key, value))
            found = _one_text(query, key, value, scaling, sliding_window).transpose(1, 2)
            return found.reshape(1, -1, *found.shape[2:]), None
        return _one_text(query, key, value, scaling, sliding_window).transpose(1, 2), None
    if query.is_cuda and query.dtype in _HALF and query.shape[-1] == value.shape[-1] <= _WIDEST:
        flat: Any = [one[0].transpose(0, 1) for one in (query, key, value)]
        assert longest is not None
        bounds: Any = (cu_seq_lens_q, cu_seq_lens_q, len(longest), len(longest))
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        packed: Any = varlen_attn(*flat, *bounds, scale=scaling, window_size=window, **_GROUPED)
        return packed.unsqueeze(0), None
    lengths = cu_seq_lens_q.diff().tolist()
    texts = zip(*(one.split(lengths, dim=2) for one in (query, key, value)), strict=True)
    outputs = [_one_text(q, k, v, scaling, sliding_window) for q, k, v in texts]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _as_rows(flat: Tensor, rows: int, length: int) -> Tensor:
    """[1, heads, rows · length, size] as [rows, heads, length, size], a view."""
    return flat.transpose(1, 2).reshape(rows, length, flat.shape[1], flat.shape[3]).transpose(1, 2)


def _one_text(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    length = query.shape[2]
    assert key.shape[2] == length, "generation with a cache takes the attention that the model was loaded with"
    grouped = query.shape[1] != key.shape[1]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    places = torch.arange(length, device=query.device)
    back = places[:, None] - places
    return scaled_dot_product_attention(
        query, key, value, attn_mask=(back >= 0) & (back < window), scale=scaling, enable_gqa=grouped
    )


def _refuse(module: nn.Module, others: dict[str, Any], is_causal: bool) -> None:
    found = [name for name in _UNKNOWN if others.get(name) is not None]
    if not is_causal:
        found.append("tokens after a token")
    if found:
        raise InputError(
            f"learner.packed: {type(module).__name__} takes {', '.join(found)}, which packed rows cannot have; set "
            "learner.packed: false"
        )
