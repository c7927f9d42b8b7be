"""Log-probabilities and values of responses under a model, for learning, consistency and warm start.

log π_θ(a_h|s_h) and V_θ(s_h) for every response token, with gradient, and the entropy without. The logits of a
whole sequence never exist (see `reval_core.model.lm_head`). Requires torch and a transformers language model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reval_core.model.lm_head import Head, token_scores
from reval_core.model.packed import reads_packed_rows
from reval_core.model.token_batch import TokenBatch


class Scores(NamedTuple):
    """The scores of a batch under a model. All are [B, H], at least float32, and 0 on padding."""

    logprobs: Tensor
    """log π(a_h | s_h); 0 where the policy did not write the token."""
    values: Tensor
    """V(s_h). The first column is V(s_1), the value of the prompt."""
    entropies: Tensor | None
    """The entropy of π(· | s_h) in nats, without gradient; None unless requested."""

    @property
    def log_policy(self) -> Tensor:
        """log π(τ) [B]: the sum over the response."""
        return self.logprobs.sum(dim=1)

    @property
    def value(self) -> Tensor:
        """V(s_1) [B]."""
        return self.values[:, 0]


def score(model: nn.Module, batch: TokenBatch, temperature: float = 1.0, entropy: bool = False) -> Scores:
    """Score a batch under a model, with gradient where it is enabled.

    Args:
        model: A transformers causal language model.
        batch: The tokens.
        temperature: The logits are divided by it first, as an engine does that samples at this temperature.
        entropy: Compute the entropies as well.
    """
    states = _hidden(model, batch).flatten(0, 1)[batch.states[batch.mask]]  # [N, width], N response tokens
    scores = token_scores(Head.of(model), states, batch.actions[batch.mask], temperature, entropy)
    return Scores(
        _spread(scores.logprobs, batch.mask) * batch.written,
        _spread(scores.values, batch.mask),
        None if scores.entropies is None else _spread(scores.entropies, batch.mask),
    )


class Scorer(nn.Module):
    """A module whose forward pass is `score`, for wrappers that act on forward passes (DDP, FSDP2)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch, temperature: float = 1.0, entropy: bool = False) -> Scores:
        """See `score`."""
        return score(self.model, batch, temperature, entropy)


def _hidden(model: nn.Module, batch: TokenBatch) -> Tensor:
    """The hidden states [R, L, width]. No mask is needed: padding is on the right, where no token attends."""
    causal: Any = model
    tokens, kwargs = batch.tokens, {}
    if batch.bounds is not None:
        kwargs = {
            "position_ids": batch.positions,
            "cu_seq_lens_q": batch.bounds,
            "cu_seq_lens_k": batch.bounds,
            "max_length_q": batch.longest,
            "max_length_k": batch.longest,
            "longest": tokens.new_empty(batch.longest),
        }
    elif reads_packed_rows(model):
        rows, length = tokens.shape
        positions = torch.arange(length, device=tokens.device).repeat(rows)[None]
        kwargs = {
            "position_ids": positions,
            "rows": tokens.new_empty(rows + 1),
            "longest": tokens.new_empty(length),
        }
        tokens = tokens.reshape(1, -1)
    hidden: Tensor = causal.base_model(input_ids=tokens, use_cache=False, **kwargs).last_hidden_state
    return hidden.reshape(*batch.tokens.shape, -1)


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Scatter [N] values into [B, H] where `mask` is true; 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
