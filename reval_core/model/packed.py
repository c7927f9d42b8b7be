"""Attention over packed rows: texts end to end in one row, where tokens attend only within their own text.

For such rows transformers' sdpa and eager attention would need a mask of all pairs of positions. Here no such mask
exists: on CUDA in half precision torch's kernel for variable-length texts runs, elsewhere one text after the other.
Depends only on torch and transformers.
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
"""The name of this attention in transformers is this prefix and the name of the attention that it replaces. It has
no mask function, so transformers builds no mask for it."""

_WITH_MASK = ("sdpa", "eager")
"""The implementations of transformers that separate packed texts by a mask of all pairs of positions."""

_HALF = (torch.bfloat16, torch.float16)

_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Unsupported arguments that some model families pass to attention."""

# torch 2.11 accepts fewer key than query heads without a flag.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

_MAX_HEAD_SIZE = 256
"""The largest head size of torch's kernel."""


def read_packed_rows(model: nn.Module) -> None:
    """Switch a transformers model to attention over packed rows, without a mask.

    It can then generate only inside `layers.as_loaded`.
    """
    from transformers import AttentionInterface

    config: Any = model.config
    if config._attn_implementation in _WITH_MASK:
        AttentionInterface.register(PREFIX + config._attn_implementation, attend)
        config._attn_implementation = PREFIX + config._attn_implementation


def reads_packed_rows(model: nn.Module) -> bool:
    """Whether a model uses this attention."""
    config: Any = model.config
    return str(config._attn_implementation).startswith(PREFIX)


def fault_of(model: PreTrainedModel) -> str | None:
    """The feature of a model's architecture that attention over packed rows does not support, or None."""
    cap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if not model._supports_attention_backend:
        return "does not use the attention interface of transformers"
    if cap:
        return f"caps its attention logits (attn_logit_softcapping: {cap})"
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        return "has attention sinks"
    return None


def check_packed(model: PreTrainedModel) -> None:
    """Raise InputError, naming the feature, if attention over packed rows does not support the architecture."""
    if (fault := fault_of(model)) is not None:
        raise InputError(
            f"learner.packed: {type(model).__name__} {fault}, which packed rows do not support; "
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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the signature that transformers' models call, from [1, heads, T, size] to [1, T, heads, size].

    Texts lie end to end in one row: either of unequal lengths, with their bounds in `cu_seq_lens_q`, or padded to
    one length, with their number given by `rows`. Without either, each row of [R, heads, L, size] is a text.

    Args:
        module: The attention layer.
        query: [1, heads, T, size], or [R, heads, L, size].
        key: As `query`; may have fewer heads.
        value: As `key`.
        attention_mask: Ignored.
        scaling: The factor of the attention logits.
        sliding_window: The number of tokens that a token attends to, itself included.
        cu_seq_lens_q: [B + 1]: the bounds of the texts.
        rows: [R + 1]. Only its size is used: to torch.compile sizes are dynamic, but each int is another graph.
        longest: [L], where L is the length of the longest text. Only its size is used.
        is_causal: Must be true.
        kwargs: Further arguments of the model.

    Raises:
        InputError: An argument is not supported.
    """
    _refuse_unsupported(module, kwargs, is_causal)
    if cu_seq_lens_q is None:
        if rows is not None and longest is not None:
            query, key, value = (_as_rows(tensor, len(rows) - 1, len(longest)) for tensor in (query, key, value))
            output = _one_text(query, key, value, scaling, sliding_window).transpose(1, 2)
            return output.reshape(1, -1, *output.shape[2:]), None
        return _one_text(query, key, value, scaling, sliding_window).transpose(1, 2), None
    if query.is_cuda and query.dtype in _HALF and query.shape[-1] == value.shape[-1] <= _MAX_HEAD_SIZE:
        flat: Any = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        assert longest is not None
        bounds: Any = (cu_seq_lens_q, cu_seq_lens_q, len(longest), len(longest))
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        packed: Any = varlen_attn(*flat, *bounds, scale=scaling, window_size=window, **_GROUPED)
        return packed.unsqueeze(0), None
    lengths = cu_seq_lens_q.diff().tolist()
    texts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [_one_text(q, k, v, scaling, sliding_window) for q, k, v in texts]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _as_rows(flat: Tensor, rows: int, length: int) -> Tensor:
    """[1, heads, rows · length, size] as [rows, heads, length, size], a view."""
    return flat.transpose(1, 2).reshape(rows, length, flat.shape[1], flat.shape[3]).transpose(1, 2)


def _one_text(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    length = query.shape[2]
    assert key.shape[2] == length, "generation with a cache needs the attention that the model was loaded with"
    grouped = query.shape[1] != key.shape[1]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    positions = torch.arange(length, device=query.device)
    distance = positions[:, None] - positions
    return scaled_dot_product_attention(
        query, key, value, attn_mask=(distance >= 0) & (distance < window), scale=scaling, enable_gqa=grouped
    )


def _refuse_unsupported(module: nn.Module, kwargs: dict[str, Any], is_causal: bool) -> None:
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if not is_causal:
        unsupported.append("non-causal attention")
    if unsupported:
        raise InputError(
            f"learner.packed: {type(module).__name__} uses {', '.join(unsupported)}, which packed rows do not "
            "support; set learner.packed: false"
        )
