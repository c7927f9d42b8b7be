"""The head of a language model, applied to a slice of the vocabulary at a time, forward and backward.

The logits are Q-values: Q_θ(s, a) is the logit of token a after s, V_θ(s) = logsumexp_a Q_θ(s, a), and
log π_θ(a|s) = Q_θ(s, a) − V_θ(s). Each is wanted as one number a token, while the logits are a vocabulary's
worth: 4,096 tokens of text and 151,936 of vocabulary make 2.5 GB, three times over for a softmax and its gradient.
Here the logits of `SLICE` tokens of the vocabulary exist at once. V is a running logsumexp over the slices; the
backward pass makes each slice again, adds to the gradient of the hidden states and writes its rows of W's.

Logits are float32 at least, whatever the precision of the model: on CUDA the matrix product takes bfloat16 and
returns float32, elsewhere it runs in float32. This file needs torch alone. docs/learner.md says what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SLICE = 2048
"""Tokens of the vocabulary whose logits exist at once; not a function of the batch: sums keep their order."""


@dataclass(frozen=True)
class Head:
    """Logits of a hidden state x: y = scale · (W x + b), or softcap · tanh(y / softcap) where there is a cap."""

    weight: Tensor
    """W [vocabulary, width]; the embedding itself where the two are tied."""
    bias: Tensor | None = None
    """b [vocabulary]."""
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a transformers causal language model. `models.check_scoring` proves that it is right."""
        causal: Any = model
        linear, config = causal.get_output_embeddings(), causal.config.get_text_config()
        scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
        for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):  # Cohere, Falcon-H1, Muse
            scale *= getattr(config, name, None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        return cls(linear.weight, getattr(linear, "bias", None), scale, softcap)


class TokenScores(NamedTuple):
    """What a head says of N tokens, each in the state before it. All are [N], float32 at least."""

    logprobs: Tensor
    """log π(a|s)."""
    values: Tensor
    """V(s)."""
    entropies: Tensor | None
    """The entropy of π(·|s) in nats, without gradient; None unless asked for."""


def token_scores(
    head: Head, states: Tensor, actions: Tensor, temperature: float = 1.0, entropy: bool = False
) -> TokenScores:
    """Scores of the tokens `actions` [N] after the hidden states `states` [N, width].

    Logits are divided by `temperature` first. Gradients flow to the states, W and b, through log π and V alike.
    """
    shape = _Shape(head.scale, head.softcap, temperature, _product_type(states))
    with torch.autocast(states.device.type, enabled=False):  # it would round the sums below
        logprobs, values, entropies = _SlicedHead.apply(states, head.weight, head.bias, actions, shape, entropy)
    return TokenScores(logprobs, values, entropies if entropy else None)


class _Shape(NamedTuple):
    """How W x + b is computed, and what becomes of it on its way to a logit."""

    scale: float
    softcap: float | None
    temperature: float
    product: torch.dtype
    """What the matrix products take; the backward pass no longer sees autocast."""

    def apply_(self, product: Tensor) -> Tensor:
        if self.scale != 1.0:
            product *= self.scale
        if self.softcap is not None:
            product.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            product /= self.temperature
        return product

    def bend(self, logits: Tensor) -> Tensor | None:
        """The derivative of the soft cap at these logits; None without one."""
        return None if self.softcap is None else 1 - (logits * (self.temperature / self.softcap)).square_()


class _Slice(NamedTuple):
    """The logits of all N states for a part of the vocabulary."""

    span: slice
    weight: Tensor
    """[n, width] in the type of the product."""
    logits: Tensor
    """[N, n]; the next slice overwrites it."""
    column: Tensor
    """[N, 1] where a state's action stands in this slice, or 0 if it does not."""
    inside: Tensor
    """[N] bool: whether it does."""


class _SlicedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        actions: Tensor,
        shape: _Shape,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A running logsumexp over logits l: the highest so far, total = Σ e^(l − highest), and for the entropy
        moment = Σ (l − highest) e^(l − highest).
        """
        exact = torch.promote_types(states.dtype, torch.float32)
        highest = states.new_full((len(states),), torch.finfo(exact).min, dtype=exact)
        total, moment, chosen = torch.zeros(3, len(states), dtype=exact, device=states.device)
        for part in _slices(states, weight, bias, actions, shape, exact):
            chosen = torch.where(part.inside, part.logits.gather(1, part.column).squeeze(1), chosen)
            higher = torch.maximum(highest, part.logits.amax(dim=1))
            fade = (highest - higher).exp()
            below = part.logits.sub_(higher.unsqueeze(1))
            weights = below.exp() if entropy else below.exp_()
            if entropy:  # row products, without a buffer for them
                moment = fade * (moment + total * (highest - higher))
                moment += torch.bmm(weights.unsqueeze(1), below.unsqueeze(2)).flatten()
            total = fade * total + weights.sum(dim=1)
            highest = higher
        values = highest + total.log()
        entropies = total.log() - moment / total
        ctx.save_for_backward(states, weight, bias, actions, values)
        ctx.shape = shape
        ctx.mark_non_differentiable(entropies)
        return chosen - values, values, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprobs: Tensor, d_values: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """With p = softmax(logits): ∂ log π(a)/∂ logits = onehot(a) − p, and ∂V/∂ logits = p."""
        states, weight, bias, actions, values = ctx.saved_tensors
        shape: _Shape = ctx.shape
        wants_states, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        slope = shape.scale / shape.temperature
        onto_action, onto_policy = slope * d_logprobs, slope * (d_values - d_logprobs)
        d_states = torch.zeros_like(states, dtype=values.dtype) if wants_states else None
        d_weight = torch.empty_like(weight) if wants_weight else None
        d_bias = torch.empty_like(bias) if wants_bias else None
        inputs = states.to(shape.product)
        for part in _slices(states, weight, bias, actions, shape, values.dtype):
            bend = shape.bend(part.logits)
            d_logits = part.logits.sub_(values.unsqueeze(1)).exp_().mul_(onto_policy.unsqueeze(1))
            d_logits.scatter_add_(1, part.column, torch.where(part.inside, onto_action, 0).unsqueeze(1))
            if bend is not None:
                d_logits *= bend
            if d_bias is not None:
                d_bias[part.span] = d_logits.sum(dim=0)
            d_logits = d_logits.to(inputs.dtype)
            if d_states is not None:
                _add_product(d_states, d_logits, part.weight)
            if d_weight is not None:
                _product(d_logits.T, inputs, d_weight[part.span])
        return None if d_states is None else d_states.to(states.dtype), d_weight, d_bias, None, None, None


def _slices(
    states: Tensor, weight: Tensor, bias: Tensor | None, actions: Tensor, shape: _Shape, exact: torch.dtype
) -> Iterator[_Slice]:
    inputs = states.to(shape.product)
    place = torch.empty(len(states) * min(SLICE, len(weight)), dtype=exact, device=states.device)
    for start in range(0, len(weight), SLICE):
        span = slice(start, min(start + SLICE, len(weight)))
        count = span.stop - start
        rows = weight[span].to(inputs.dtype)
        logits = place[: len(states) * count].view(len(states), count)
        _product(inputs, rows.T, logits)
        if bias is not None:
            logits += bias[span]
        inside = (actions >= start) & (actions < span.stop)
        column = torch.where(inside, actions - start, 0).unsqueeze(1)
        yield _Slice(span, rows, shape.apply_(logits), column, inside)


def _product_type(states: Tensor) -> torch.dtype:
    """What the matrix products take: half precision only on CUDA, where they can return float32."""
    kind = states.device.type
    if kind != "cuda":
        return torch.promote_types(states.dtype, torch.float32)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _product(left: Tensor, right: Tensor, place: Tensor) -> None:
    """place = left @ right."""
    if left.dtype == place.dtype:
        torch.mm(left, right, out=place)
    elif place.dtype == torch.float32:
        torch.mm(left, right, out_dtype=torch.float32, out=place)
    else:
        place.copy_(left @ right)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
