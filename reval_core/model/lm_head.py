"""The head of a language model, applied to a slice of the vocabulary at a time, forward and backward.

The logits are Q-values: Q_θ(s, a) is the logit of token a after s, V_θ(s) = logsumexp_a Q_θ(s, a), and
log π_θ(a|s) = Q_θ(s, a) − V_θ(s). Each is wanted as one number a token, while the logits are a vocabulary's
worth: 4,096 tokens of text and 151,936 of vocabulary make 2.5 GB, three times over for a softmax and its gradient.
Here one block of logits exists at a time, of a slice of the vocabulary and some of the states (`TILES`). V is a
running logsumexp over the slices; the backward pass computes each block again.

Logits are float32 at least, whatever the precision of the model: on CUDA the matrix product takes bfloat16 and
returns float32, and the element-wise work on a block is compiled into one kernel; elsewhere all is float32 and
uncompiled. This file needs torch alone. docs/learner.md says what was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

log = logging.getLogger("reval")


class Tile(NamedTuple):
    """How much of the logits exists at once; not a function of the batch, so that sums keep their order."""

    columns: int
    """Tokens of the vocabulary."""
    logits: int
    """Numbers in all: of `logits` // `columns` states or, where the vocabulary is smaller, of more."""


TILES = {"cuda": Tile(4096, 2**26), "cpu": Tile(2048, 2**20)}
"""On a GPU kernels must be few and large; on a CPU the cache has to hold a block."""


FUSED_ON = {"cuda"}
"""Where the element-wise work is compiled; on a CPU that would need a C++ compiler."""


def tile_on(device: torch.device) -> Tile:
    """The block for a device."""
    return TILES.get(device.type, TILES["cpu"])


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

    def logits(self, product: Tensor, bias: Tensor | None, room: Tensor | None) -> Tensor:
        """The logits of W x, in `room` if that is given."""
        if bias is not None:
            product = torch.add(product, bias, out=room)
        if self.scale != 1.0:
            product = torch.mul(product, self.scale, out=room)
        if self.softcap is not None:
            bent = torch.tanh(torch.div(product, self.softcap, out=room), out=room)
            product = torch.mul(bent, self.softcap, out=room)
        return product if self.temperature == 1.0 else torch.div(product, self.temperature, out=room)

    def bend(self, logits: Tensor) -> Tensor | None:
        """The derivative of the soft cap at these logits; None without one."""
        return None if self.softcap is None else 1 - (logits * (self.temperature / self.softcap)).square_()


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
        """One pass over the logits, block by block, for the sums of `_add_logits`."""
        exact = torch.promote_types(states.dtype, torch.float32)
        inputs, blocks = states.to(shape.product), _Blocks(states, weight, exact)
        sums = [_no_sums(len(inputs[rows]), exact, states.device) for rows in blocks.rows]
        for span in blocks.spans:
            part, bent = weight[span].to(inputs.dtype), None if bias is None else bias[span]
            for rows, of_rows in zip(blocks.rows, sums, strict=True):
                product = blocks.product(inputs[rows], part)
                blocks.add_logits(of_rows, product, bent, actions[rows] - span.start, shape, entropy)
        highest, total, moment, chosen = torch.cat(sums, dim=1).unbind()
        log_total = total.log()
        values, entropies = highest + log_total, log_total - moment / total
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
        exact = values.dtype
        slope = shape.scale / shape.temperature
        # [3, N]: V, and what pulls at the action's logit and at all of them
        known = torch.stack((values, slope * d_logprobs, slope * (d_values - d_logprobs)))
        d_states = torch.zeros_like(states, dtype=exact) if wants_states else None
        d_weight = torch.empty_like(weight) if wants_weight else None
        d_bias = torch.empty_like(bias) if wants_bias else None
        inputs, blocks = states.to(shape.product), _Blocks(states, weight, exact)
        known_parts = [known[:, rows].contiguous() for rows in blocks.rows]
        for span in blocks.spans:
            part, bent = weight[span].to(inputs.dtype), None if bias is None else bias[span]
            of_part, of_bias = (
                torch.zeros(one.shape, dtype=exact, device=one.device) for one in (part, part[:, 0])
            )
            for rows, of_rows in zip(blocks.rows, known_parts, strict=True):
                product = blocks.product(inputs[rows], part)
                d_logits = blocks.slopes(of_rows, product, bent, actions[rows] - span.start, shape)
                if d_bias is not None:
                    of_bias += d_logits.sum(dim=0, dtype=exact)
                if d_states is not None:
                    _add_product(d_states[rows], d_logits, part)
                if d_weight is not None:
                    _add_product(of_part, d_logits.T, inputs[rows])
            if d_weight is not None:
                d_weight[span] = of_part
            if d_bias is not None:
                d_bias[span] = of_bias
        return None if d_states is None else d_states.to(states.dtype), d_weight, d_bias, None, None, None


class _Blocks:
    """N states and the vocabulary cut into blocks: how, and the work on the logits of each."""

    def __init__(self, states: Tensor, weight: Tensor, exact: torch.dtype) -> None:
        tile = tile_on(states.device)
        columns = min(tile.columns, len(weight))
        whole = max(1, tile.logits // columns)
        count = min(whole, len(states))
        self.spans = _cut(len(weight), columns)
        """The slices of the vocabulary."""
        self.rows = _cut(len(states), count)
        """The groups of states that go through one slice after the other."""
        self._place = torch.empty(count * columns, dtype=exact, device=states.device)
        fused = states.device.type in FUSED_ON
        self.add_logits = partial(_fused(_add_logits), whole) if fused else _add_logits
        self.slopes = partial(_fused(_slopes), whole) if fused else _slopes

    def product(self, inputs: Tensor, part: Tensor) -> Tensor:
        """W x [n, m] for a block; the next block overwrites it."""
        product = self._place[: len(inputs) * len(part)].view(len(inputs), len(part))
        _product(inputs, part.T, product)
        return product


def _cut(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _no_sums(count: int, kind: torch.dtype, device: torch.device) -> Tensor:
    sums = torch.zeros(4, count, dtype=kind, device=device)
    sums[0] = torch.finfo(kind).min
    return sums


def _add_logits(
    sums: Tensor, product: Tensor, bias: Tensor | None, target: Tensor, shape: _Shape, entropy: bool
) -> None:
    """Add a block of logits l to the `sums` [4, n] of its states; `target` [n] is the action's place in it.

    They are the highest so far, total = Σ e^(l − highest), moment = Σ (l − highest) e^(l − highest), which is for
    the entropy, and the action's logit.
    """
    room = _room(product)
    logits = shape.logits(product, bias, room)
    highest, total, moment, chosen = sums.unbind()
    column = target.clamp(0, logits.shape[1] - 1)
    chosen = torch.where(target == column, logits.gather(1, column.unsqueeze(1)).squeeze(1), chosen)
    higher = torch.maximum(highest, logits.amax(dim=1))
    rise = highest - higher
    below = torch.sub(logits, higher.unsqueeze(1), out=room)
    weights = torch.exp(below, out=None if entropy else room)
    if entropy:
        moment = rise.exp() * (moment + total * rise) + torch.mul(weights, below, out=room).sum(dim=1)
    total = rise.exp() * total + weights.sum(dim=1)
    sums.copy_(torch.stack((higher, total, moment, chosen)))


def _slopes(known: Tensor, product: Tensor, bias: Tensor | None, target: Tensor, shape: _Shape) -> Tensor:
    """The loss's derivative by a block of W x + b [n, m], in the type of the products, from `known` [3, n]."""
    room = _room(product)
    values, onto_action, onto_policy = (one.unsqueeze(1) for one in known.unbind())
    logits = shape.logits(product, bias, room)
    bend = shape.bend(logits)
    policy = torch.exp(torch.sub(logits, values, out=room), out=room)
    slopes = torch.mul(policy, onto_policy, out=room)
    if room is None:
        places = torch.arange(product.shape[1], device=product.device)
        slopes = slopes + torch.where(places == target.unsqueeze(1), onto_action, 0)
    else:
        column = target.clamp(0, product.shape[1] - 1).unsqueeze(1)
        slopes.scatter_add_(1, column, torch.where(target.unsqueeze(1) == column, onto_action, 0))
    return (slopes if bend is None else slopes * bend).to(shape.product)


def _room(product: Tensor) -> Tensor | None:
    """Where element-wise work writes: over its input; compiled, nowhere, since its steps are one."""
    return None if torch.compiler.is_compiling() else product


class _Fused:
    """Work on the logits of a block, compiled into one kernel, where it can be compiled.

    torch plans a kernel by the sizes of the call that it is compiled at. That call is with a whole block, so that
    neither speed nor the order of sums is a matter of which batch came first.
    """

    def __init__(self, work: Callable[..., Any]) -> None:
        self._plain = work
        self._work = torch.compile(work, dynamic=True)
        self._planned: set[Any] = set()

    def __call__(
        self, whole: int, numbers: Tensor, product: Tensor, bias: Tensor | None, target: Tensor, *settings: Any
    ) -> Any:
        """The work, given the states of a whole block."""
        kind = (bias is None, product.dtype, torch.is_inference_mode_enabled(), *settings)
        if kind not in self._planned:
            self._plan(whole, numbers, product, bias, target, settings)
            self._planned.add(kind)
        return self._work(numbers, product, bias, target, *settings)

    def _plan(
        self, whole: int, numbers: Tensor, product: Tensor, bias: Tensor | None, target: Tensor, settings: Any
    ) -> None:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        sizes = (len(numbers), whole), (whole, product.shape[1]), (whole,)
        empty = [one.new_zeros(size) for one, size in zip((numbers, product, target), sizes, strict=True)]
        try:
            self._work(*empty[:2], bias, empty[2], *settings)
        except TorchDynamoException as error:  # there is no C compiler, for one
            reason = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
            log.warning("the head's element-wise work is not compiled, and slower for it: %s", reason)
            self._work = self._plain


_fused = cache(_Fused)


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
