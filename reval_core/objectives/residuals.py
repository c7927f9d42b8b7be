"""The objectives that square the trajectory residual Δ(τ): ReVal, TBRM and the regression variant.

The options are off by default; each says what it departs from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reval_core.objectives.inputs import Inputs, Outputs


def reval(inputs: Inputs, beta: float, **options: Any) -> Outputs:
    """ReVal, Eq. 2: the square of the trajectory residual. The gradient flows through V_θ(s_1) as well.

    Δ(τ) = [V_θ(s_1) − V_ref(s_1)] + log π_θ(τ) − log π_ref(τ) − r(τ)/β
    """
    return residual_objective(inputs, value_term("reval", inputs.value, inputs.value_ref), beta, **options)


def tbrm(inputs: Inputs, beta: float, **options: Any) -> Outputs:
    """TBRM (arXiv 2505.15311): as ReVal, with V_θ(s_1) in place of V_θ(s_1) − V_ref(s_1)."""
    return residual_objective(inputs, value_term("tbrm", inputs.value, inputs.value_ref), beta, **options)


def regression(inputs: Inputs, beta: float, **options: Any) -> Outputs:
    """The regression variant, Eq. 8: as ReVal without V."""
    return residual_objective(inputs, value_term("regression", inputs.value, inputs.value_ref), beta, **options)


def residual_objective(
    inputs: Inputs,
    of_value: Tensor,
    beta: float,
    huber: float | None = None,
    clip: float | None = None,
    length_normalised: bool = False,
) -> Outputs:
    """The loss Δ², with Δ(τ) = of_value + log π_θ(τ) − log π_ref(τ) − r(τ)/β.

    huber: beyond |Δ| = huber the square goes on as a line, 2·huber·|Δ| − huber². Departs from least squares: an
        outlier pulls no harder than `huber`, so the fit is nearer a median than a mean of the rewards.
    clip: Δ is held within ±clip before it is squared. Departs from Eq. 2: a trajectory further out than that
        teaches nothing at all until others have brought it nearer.
    length_normalised: the loss is Δ² / |τ|, |τ| in tokens. Departs from the mean over trajectories: a long
        response, whose Δ is a longer sum, counts for less, at the same minimum (Δ = 0).

    Metrics: `outliers`, the share of residuals beyond huber or clip.
    """
    log_ratio = inputs.logprobs.sum(dim=1) - inputs.log_ref
    delta = of_value + log_ratio - inputs.reward / beta
    held = delta if clip is None else delta.clamp(-clip, clip)
    loss = held.square()
    if huber is not None:
        loss = torch.where(held.abs() <= huber, loss, 2 * huber * held.abs() - huber**2)
    if length_normalised:
        loss = loss / inputs.tokens
    delta = delta.detach()
    limit = min(limit for limit in (huber, clip, torch.inf) if limit is not None)
    metrics = {"outliers": (delta.abs() > limit).to(delta.dtype)}
    return Outputs(loss, delta, of_value.detach(), log_ratio.detach(), metrics)


def value_term(kind: str, value: Tensor, value_ref: Tensor) -> Tensor:
    """The part of Δ that comes from V [B], by the kind of objective; ReVal's for one of a user's own."""
    match kind:
        case "tbrm":
            return value
        case "regression":
            return torch.zeros_like(value)
        case _:
            return value - value_ref


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
