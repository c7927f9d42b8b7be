"""The head of a language model, applied to a slice of the vocabulary at a time, forward and backward.

The logits are Q-values: Q_θ(s, a) is the logit of token a after s, V_θ(s) = logsumexp_a Q_θ(s, a), and
log π_θ(a|s) = Q_θ(s, a) − V_θ(s). Both are needed as one number per token, while the logits are one number per
token and vocabulary entry: 4,096 tokens and a vocabulary of 151,936 make 2.5 GB, three times over for a softmax and
its gradient. Here one block of logits exists at a time, for a slice of the vocabulary and some of the states
(`TILES`). V is a running logsumexp over the slices; the backward pass recomputes each block.

Logits are at least float32, whatever the precision of the model: on CUDA the matrix product takes bfloat16 and
returns float32, and the element-wise operations on a block are compiled into one kernel; elsewhere everything is
float32 and uncompiled. This module depends only on torch. docs/learner.md has the measurements.
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
    """The size of a block of logits. It does not depend on the batch, so sums are always in the same order."""

    columns: int
    """Vocabulary entries per block."""
    logits: int
    """Logits per block: of `logits` // `columns` states, or of more where the vocabulary is smaller."""


TILES = {"cuda": Tile(4096, 2**26), "cpu": Tile(2048, 2**20)}
"""A GPU needs few, large kernels; on a CPU a block has to fit the cache."""


FUSED_ON = {"cuda"}
"""Devices on which element-wise operations are compiled; on a CPU that would require a C++ compiler."""


def tile_on(device: torch.device) -> Tile:
    """The block size for a device."""
    return TILES.get(device.type, TILES["cpu"])


@dataclass(frozen=True)
class Head:
    """The logits of a hidden state x: y = scale · (W x + b), or softcap · tanh(y / softcap) with a soft cap."""

    weight: Tensor
    """W [vocabulary, width]; the embedding itself if the two are tied."""
    bias: Tensor | None = None
    """b [vocabulary]."""
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a transformers causal language model; `scoring_check.check_scoring` verifies it."""
        causal: Any = model
        linear, config = causal.get_output_embeddings(), causal.config.get_text_config()
        scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
        for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):  # Cohere, Falcon-H1, Muse
            scale *= getattr(config, name, None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        return cls(linear.weight, getattr(linear, "bias", None), scale, softcap)


class TokenScores(NamedTuple):
    """The scores of N tokens, each in the state before it. All are [N], at least float32."""

    logprobs: Tensor
    """log π(a|s)."""
    values: Tensor
    """V(s)."""
    entropies: Tensor | None
    """The entropy of π(·|s) in nats, without gradient; None unless requested."""


def token_scores(
    head: Head, states: Tensor, actions: Tensor, temperature: float = 1.0, entropy: bool = False
) -> TokenScores:
    """Compute the scores of tokens from the hidden states before them.

    Gradients flow to the states, W and b, through both log π and V.

    Args:
        head: The head.
        states: The hidden states [N, width].
        actions: The tokens [N].
        temperature: The logits are divided by it first.
        entropy: Compute the entropies as well.
    """
    shape = _Shape(head.scale, head.softcap, temperature, _product_type(states))
    with torch.autocast(states.device.type, enabled=False):  # autocast would round the sums below
        logprobs, values, entropies = _SlicedHead.apply(states, head.weight, head.bias, actions, shape, entropy)
    return TokenScores(logprobs, values, entropies if entropy else None)


class _Shape(NamedTuple):
    """How W x + b is computed and transformed into a logit."""

    scale: float
    softcap: float | None
    temperature: float
    product: torch.dtype
    """The input type of the matrix products, kept since the backward pass does not see autocast."""

    def logits(self, product: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
        """The logits of W x, written into `out` if given."""
        if bias is not None:
            product = torch.add(product, bias, out=out)
        if self.scale != 1.0:
            product = torch.mul(product, self.scale, out=out)
        if self.softcap is not None:
            capped = torch.tanh(torch.div(product, self.softcap, out=out), out=out)
            product = torch.mul(capped, self.softcap, out=out)
        return product if self.temperature == 1.0 else torch.div(product, self.temperature, out=out)

    def cap_slope(self, logits: Tensor) -> Tensor | None:
        """The derivative of the soft cap at these logits; None without a soft cap."""
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
        """Accumulate the sums of `_add_logits` in one pass over the logits, block by block."""
        exact = torch.promote_types(states.dtype, torch.float32)
        inputs, blocks = states.to(shape.product), _Blocks(states, weight, exact)
        sums = [_initial_sums(len(inputs[rows]), exact, states.device) for rows in blocks.rows]
        for span in blocks.spans:
            part, part_bias = weight[span].to(inputs.dtype), None if bias is None else bias[span]
            for rows, of_rows in zip(blocks.rows, sums, strict=True):
                product = blocks.product(inputs[rows], part)
                blocks.add_logits(of_rows, product, part_bias, actions[rows] - span.start, shape, entropy)
        highest, total, moment, action_logit = torch.cat(sums, dim=1).unbind()
        log_total = total.log()
        values, entropies = highest + log_total, log_total - moment / total
        ctx.save_for_backward(states, weight, bias, actions, values)
        ctx.shape = shape
        ctx.mark_non_differentiable(entropies)
        return action_logit - values, values, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprobs: Tensor, d_values: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """With p = softmax(logits): ∂ log π(a)/∂ logits = onehot(a) − p, and ∂V/∂ logits = p."""
        states, weight, bias, actions, values = ctx.saved_tensors
        shape: _Shape = ctx.shape
        wants_states, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        exact = values.dtype
        slope = shape.scale / shape.temperature
        # [3, N]: V, and the coefficients of onehot(a) and of p in the gradient by the logits
        known = torch.stack((values, slope * d_logprobs, slope * (d_values - d_logprobs)))
        d_states = torch.zeros_like(states, dtype=exact) if wants_states else None
        d_weight = torch.empty_like(weight) if wants_weight else None
        d_bias = torch.empty_like(bias) if wants_bias else None
        inputs, blocks = states.to(shape.product), _Blocks(states, weight, exact)
        known_parts = [known[:, rows].contiguous() for rows in blocks.rows]
        for span in blocks.spans:
            part, part_bias = weight[span].to(inputs.dtype), None if bias is None else bias[span]
            of_part, of_bias = (
                torch.zeros(tensor.shape, dtype=exact, device=tensor.device) for tensor in (part, part[:, 0])
            )
            for rows, of_rows in zip(blocks.rows, known_parts, strict=True):
                product = blocks.product(inputs[rows], part)
                d_logits = blocks.slopes(of_rows, product, part_bias, actions[rows] - span.start, shape)
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
    """The partition of N states and the vocabulary into blocks, and the operations on the logits of a block."""

    def __init__(self, states: Tensor, weight: Tensor, exact: torch.dtype) -> None:
        tile = tile_on(states.device)
        columns = min(tile.columns, len(weight))
        whole = max(1, tile.logits // columns)
        count = min(whole, len(states))
        self.spans = _cut(len(weight), columns)
        """The slices of the vocabulary."""
        self.rows = _cut(len(states), count)
        """The groups of states; each is combined with every slice."""
        self._buffer = torch.empty(count * columns, dtype=exact, device=states.device)
        fused = states.device.type in FUSED_ON
        self.add_logits = partial(_fused(_add_logits), whole) if fused else _add_logits
        self.slopes = partial(_fused(_slopes), whole) if fused else _slopes

    def product(self, inputs: Tensor, part: Tensor) -> Tensor:
        """W x [n, m] for a block, in a buffer that the next block overwrites."""
        product = self._buffer[: len(inputs) * len(part)].view(len(inputs), len(part))
        _product(inputs, part.T, product)
        return product


def _cut(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _initial_sums(count: int, kind: torch.dtype, device: torch.device) -> Tensor:
    sums = torch.zeros(4, count, dtype=kind, device=device)
    sums[0] = torch.finfo(kind).min
    return sums


def _add_logits(
    sums: Tensor, product: Tensor, bias: Tensor | None, target: Tensor, shape: _Shape, entropy: bool
) -> None:
    """Add a block of logits l to the running sums of its states.

    Args:
        sums: [4, n]: the highest logit so far, total = Σ e^(l − highest), moment = Σ (l − highest) e^(l − highest),
            which the entropy needs, and the action's logit.
        product: W x [n, m].
        bias: b [m].
        target: The column of the action in this block [n]; outside [0, m) where it is in another block.
        shape: How logits are computed from W x + b.
        entropy: Update the moment.
    """
    out = _output_buffer(product)
    logits = shape.logits(product, bias, out)
    highest, total, moment, action_logit = sums.unbind()
    column = target.clamp(0, logits.shape[1] - 1)
    action_logit = torch.where(target == column, logits.gather(1, column.unsqueeze(1)).squeeze(1), action_logit)
    higher = torch.maximum(highest, logits.amax(dim=1))
    rise = highest - higher
    below = torch.sub(logits, higher.unsqueeze(1), out=out)
    weights = torch.exp(below, out=None if entropy else out)
    if entropy:
        moment = rise.exp() * (moment + total * rise) + torch.mul(weights, below, out=out).sum(dim=1)
    total = rise.exp() * total + weights.sum(dim=1)
    sums.copy_(torch.stack((higher, total, moment, action_logit)))


def _slopes(known: Tensor, product: Tensor, bias: Tensor | None, target: Tensor, shape: _Shape) -> Tensor:
    """The gradient of the loss by a block of W x + b [n, m], in the type of the products, from `known` [3, n]."""
    out = _output_buffer(product)
    values, onto_action, onto_policy = (row.unsqueeze(1) for row in known.unbind())
    logits = shape.logits(product, bias, out)
    cap_slope = shape.cap_slope(logits)
    policy = torch.exp(torch.sub(logits, values, out=out), out=out)
    slopes = torch.mul(policy, onto_policy, out=out)
    if out is None:
        columns = torch.arange(product.shape[1], device=product.device)
        slopes = slopes + torch.where(columns == target.unsqueeze(1), onto_action, 0)
    else:
        column = target.clamp(0, product.shape[1] - 1).unsqueeze(1)
        slopes.scatter_add_(1, column, torch.where(target.unsqueeze(1) == column, onto_action, 0))
    return (slopes if cap_slope is None else slopes * cap_slope).to(shape.product)


def _output_buffer(product: Tensor) -> Tensor | None:
    """The output buffer of element-wise operations: their input; None when compiled, since they are then fused."""
    return None if torch.compiler.is_compiling() else product


class _Fused:
    """A function on the logits of a block, compiled into one kernel where possible.

    torch plans a kernel for the sizes of the call that compiles it. That call has the size of a full block, so
    neither speed nor the order of sums depends on which batch comes first.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._eager = function
        self._function = torch.compile(function, dynamic=True)
        self._planned: set[Any] = set()

    def __call__(
        self, whole: int, numbers: Tensor, product: Tensor, bias: Tensor | None, target: Tensor, *settings: Any
    ) -> Any:
        """Call the function; `whole` is the number of states of a full block."""
        kind = (bias is None, product.dtype, torch.is_inference_mode_enabled(), *settings)
        if kind not in self._planned:
            self._plan(whole, numbers, product, bias, target, settings)
            self._planned.add(kind)
        return self._function(numbers, product, bias, target, *settings)

    def _plan(
        self, whole: int, numbers: Tensor, product: Tensor, bias: Tensor | None, target: Tensor, settings: Any
    ) -> None:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        sizes = (len(numbers), whole), (whole, product.shape[1]), (whole,)
        empty = [tensor.new_zeros(size) for tensor, size in zip((numbers, product, target), sizes, strict=True)]
        try:
            self._function(*empty[:2], bias, empty[2], *settings)
        except TorchDynamoException as error:  # for example, no C compiler
            reason = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
            log.warning("the head's element-wise operations are not compiled, which is slower: %s", reason)
            self._function = self._eager


_fused = cache(_Fused)


def _product_type(states: Tensor) -> torch.dtype:
    """The input type of the matrix products: half precision only on CUDA, where they can return float32."""
    kind = states.device.type
    if kind != "cuda":
        return torch.promote_types(states.dtype, torch.float32)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _product(left: Tensor, right: Tensor, result: Tensor) -> None:
    """result = left @ right."""
    if left.dtype == result.dtype:
        torch.mm(left, right, out=result)
    elif result.dtype == torch.float32:
        torch.mm(left, right, out_dtype=torch.float32, out=result)
    else:
        result.copy_(left @ right)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
