"""The objectives: pure functions from what is known of a batch to a loss and a residual for each trajectory.

Every objective takes `Inputs` and gives `Outputs`. The loss of an update is the mean of `Outputs.loss` over the
trajectories, weighted by `Inputs.weight`. This file needs torch alone.

Where it departs from the paper: residuals below a measured floor count as zero (see `residual_floor`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-5
"""Relative noise of a stored reference score in float32. See docs/decisions/0003-noise-floor.md."""


@dataclass(frozen=True)
class Inputs:
    """B trajectories with responses of up to H tokens. Only `logprobs` and `value` carry gradients."""

    logprobs: Tensor
    """log π_θ(a_h|s_h) [B, H]; 0 on padding."""
    mask: Tensor
    """[B, H] bool: true on the tokens that the policy wrote."""
    value: Tensor
    """V_θ(s_1) [B]."""
    log_ref: Tensor
    """log π_ref(τ) [B], as stored."""
    value_ref: Tensor
    """V_ref(s_1) [B], as stored."""
    reward: Tensor
    """r(τ) [B]."""
    advantage: Tensor
    """(r − mean) / deviation within the group [B]."""
    old_logprobs: Tensor
    """log π(a_h|s_h) [B, H] of the policy that wrote the response, as the trainer computes it."""
    engine_logprobs: Tensor
    """The same as the engine gave it [B, H]."""


class Outputs(NamedTuple):
    """What an objective makes of each trajectory, [B] each."""

    loss: Tensor
    """With gradient."""
    delta: Tensor
    """Δ(τ), or 0 for an objective that has none. Without gradient."""
    value_term: Tensor
    """The part of Δ that comes from V. Without gradient."""
    log_ratio: Tensor
    """log π_θ(τ) − log π_ref(τ). Without gradient."""
    clipped: Tensor
    """The share of tokens whose ratio was clipped. Without gradient."""


Objective = Callable[[Inputs], Outputs]


def step_residuals(
    values: Tensor,
    values_ref: Tensor,
    logprobs: Tensor,
    logprobs_ref: Tensor,
    mask: Tensor,
    scaled_reward: Tensor,
) -> Tensor:
    """The stepwise residuals δ_h [B, H] of the Bellman operator (§4.2); they sum to ReVal's Δ(τ).

    δ_h = D_h − D_{h+1} + log π_θ(a_h|s_h) − log π_ref(a_h|s_h) − r_h/β, with D_h = V_θ(s_h) − V_ref(s_h),
    D_{H+1} = 0, and r_h = r(τ) at the last step, else 0. `mask` is true on response tokens; `scaled_reward`
    is r(τ)/β [B].
    """
    difference = (values - values_ref) * mask
    after = torch.cat([difference[:, 1:], torch.zeros_like(difference[:, :1])], dim=1)
    last = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    reward = torch.where(last, scaled_reward.unsqueeze(1), torch.zeros_like(logprobs))
    return (difference - after + (logprobs - logprobs_ref) - reward) * mask


def residual_floor(delta: Tensor, log_ref: Tensor) -> Tensor:
    """`delta` with what is within the noise of stored scores put to exactly 0, gradient included.

    A reference score made under another padding or batch shape differs by up to 1e-6. AdamW would turn a
    residual of that size into full steps, and a policy that should stand still would walk away.
    """
    return torch.where(delta.abs() <= FLOOR * (1 + log_ref.abs()), torch.zeros_like(delta), delta)


def reval(inputs: Inputs, beta: float) -> Outputs:
    """ReVal, Eq. 2: the square of the trajectory residual. The gradient flows through V_θ(s_1) as well.

    Δ(τ) = [V_θ(s_1) − V_ref(s_1)] + log π_θ(τ) − log π_ref(τ) − r(τ)/β
    """
    return _squared(inputs, inputs.value - inputs.value_ref, beta)


def tbrm(inputs: Inputs, beta: float) -> Outputs:
    """TBRM (arXiv 2505.15311): as ReVal, with V_θ(s_1) in place of V_θ(s_1) − V_ref(s_1)."""
    return _squared(inputs, inputs.value, beta)


def regression(inputs: Inputs, beta: float) -> Outputs:
    """The regression variant, Eq. 8: as ReVal without V."""
    return _squared(inputs, torch.zeros_like(inputs.value), beta)


def grpo(inputs: Inputs, clip_low: float, clip_high: float, importance_cap: float) -> Outputs:
    """GRPO (arXiv 2402.03300) with clip-higher (DAPO, arXiv 2503.14476), the mean over a response's tokens.

    −mean_h c_h · min(ρ_h A, clip(ρ_h, 1 − clip_low, 1 + clip_high) A), with ρ_h = π_θ/π_old by the trainer and
    c_h = min(π_old/π_engine, importance_cap), the truncated correction for an engine out of step.

    In a group of one the advantage is the reward itself (mean 0, deviation 1), as in verl.
    """
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
    correction = torch.exp(inputs.old_logprobs - inputs.engine_logprobs).clamp(max=importance_cap)
    advantage = inputs.advantage.unsqueeze(1)
    free = ratio * advantage
    held = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    tokens = inputs.mask.sum(dim=1).clamp(min=1)
    loss = -(correction * torch.minimum(free, held) * inputs.mask).sum(dim=1) / tokens
    with torch.no_grad():
        zero = torch.zeros_like(inputs.value)
        clipped = ((held < free) & inputs.mask).sum(dim=1) / tokens
        return Outputs(loss, zero, zero, inputs.logprobs.sum(dim=1) - inputs.log_ref, clipped)


def make_objective(kind: str, **settings: Any) -> Objective:
    """The objective of that name with its settings (β and so on) filled in."""
    functions: dict[str, Callable[..., Outputs]] = {
        "reval": reval,
        "tbrm": tbrm,
        "regression": regression,
        "grpo": grpo,
    }
    return partial(functions[kind], **settings)


def _squared(inputs: Inputs, value_term: Tensor, beta: float) -> Outputs:
    log_ratio = inputs.logprobs.sum(dim=1) - inputs.log_ref
    delta = residual_floor(value_term + log_ratio - inputs.reward / beta, inputs.log_ref)
    return Outputs(delta.square(), delta.detach(), value_term.detach(), log_ratio.detach(), torch.zeros_like(delta))
