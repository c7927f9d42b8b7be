"""The objectives that square the trajectory residual Δ(τ): ReVal, TBRM and the regression variant.

The options are off by default; each docstring says how it departs from the paper.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reval_core.objectives.inputs import Inputs, Outputs


class Residual(NamedTuple):
    """The trajectory residual and its parts, [B] each: Δ = value_term + log_ratio − scaled_reward."""

    delta: Tensor
    """Δ(τ); NaN without β."""
    value_term: Tensor
    """The part of Δ that comes from V."""
    log_ratio: Tensor
    """log π_θ(τ) − log π_ref(τ)."""
    scaled_reward: Tensor
    """r(τ)/β; NaN without β."""


def residual(
    kind: str,
    log_policy: Tensor,
    log_ref: Tensor,
    value: Tensor,
    value_ref: Tensor,
    reward: Tensor,
    beta: float | None,
) -> Residual:
    """Δ(τ), as the objectives square it and as consistency scoring and residual evaluation record it.

    Δ(τ) = value_term + log π_θ(τ) − log π_ref(τ) − r(τ)/β

    Args:
        kind: The kind of objective, which determines the value term (see `value_term`).
        log_policy: log π_θ(τ) [B], in nats.
        log_ref: log π_ref(τ) [B], in nats.
        value: V_θ(s_1) [B].
        value_ref: V_ref(s_1) [B].
        reward: r(τ) [B].
        beta: β, or None for an objective without a residual.
    """
    of_value = value_term(kind, value, value_ref)
    log_ratio = log_policy - log_ref
    scaled_reward = torch.full_like(reward, torch.nan) if beta is None else reward / beta
    return Residual(of_value + log_ratio - scaled_reward, of_value, log_ratio, scaled_reward)


def reval(inputs: Inputs, beta: float, **options: Any) -> Outputs:
    """ReVal, Eq. 2: the square of the trajectory residual. The gradient flows through V_θ(s_1) as well.

    Δ(τ) = [V_θ(s_1) − V_ref(s_1)] + log π_θ(τ) − log π_ref(τ) − r(τ)/β
    """
    return residual_objective("reval", inputs, beta, **options)


def tbrm(inputs: Inputs, beta: float, **options: Any) -> Outputs:
    """TBRM (arXiv 2505.15311): ReVal with V_θ(s_1) in place of V_θ(s_1) − V_ref(s_1)."""
    return residual_objective("tbrm", inputs, beta, **options)


def regression(inputs: Inputs, beta: float, **options: Any) -> Outputs:
    """The regression variant, Eq. 8: ReVal without the V terms."""
    return residual_objective("regression", inputs, beta, **options)


def residual_objective(
    kind: str,
    inputs: Inputs,
    beta: float,
    huber: float | None = None,
    clip: float | None = None,
    length_normalised: bool = False,
) -> Outputs:
    """The loss Δ² for the residual of this kind of objective.

    Args:
        kind: `reval`, `tbrm` or `regression` (see `value_term`).
        inputs: The batch.
        beta: β, the scale of the reward.
        huber: Beyond |Δ| = huber the loss is linear, 2·huber·|Δ| − huber². Departs from least squares: an outlier
            has no larger gradient than |Δ| = huber, so the fit is closer to a median than to a mean of the rewards.
        clip: Δ is clipped to ±clip before it is squared. Departs from Eq. 2: a trajectory beyond the limit has no
            gradient until updates on other trajectories have brought its residual within the limit.
        length_normalised: The loss is Δ² / |τ|, with |τ| in tokens. Departs from the mean over trajectories: a long
            response, whose Δ is a longer sum, has less weight, at the same minimum (Δ = 0).

    Returns:
        The outputs, with the metric `outliers`: the share of residuals beyond huber or clip.
    """
    found = residual(
        kind, inputs.logprobs.sum(dim=1), inputs.log_ref, inputs.value, inputs.value_ref, inputs.reward, beta
    )
    clipped = found.delta if clip is None else found.delta.clamp(-clip, clip)
    loss = clipped.square()
    if huber is not None:
        loss = torch.where(clipped.abs() <= huber, loss, 2 * huber * clipped.abs() - huber**2)
    if length_normalised:
        loss = loss / inputs.tokens
    delta = found.delta.detach()
    limit = min(limit for limit in (huber, clip, torch.inf) if limit is not None)
    metrics = {"outliers": (delta.abs() > limit).to(delta.dtype)}
    return Outputs(loss, delta, found.value_term.detach(), found.log_ratio.detach(), metrics)


def value_term(kind: str, value: Tensor, value_ref: Tensor) -> Tensor:
    """The part of Δ that comes from V [B], by the kind of objective; custom objectives have ReVal's."""
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
    D_{H+1} = 0, and r_h = r(τ) at the last step, else 0.

    Args:
        values: V_θ(s_h) [B, H].
        values_ref: V_ref(s_h) [B, H].
        logprobs: log π_θ(a_h|s_h) [B, H], in nats.
        logprobs_ref: log π_ref(a_h|s_h) [B, H], in nats.
        mask: [B, H] bool, true on response tokens.
        scaled_reward: r(τ)/β [B].
    """
    difference = (values - values_ref) * mask
    after = torch.cat([difference[:, 1:], torch.zeros_like(difference[:, :1])], dim=1)
    last = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    reward = torch.where(last, scaled_reward.unsqueeze(1), torch.zeros_like(logprobs))
    return (difference - after + (logprobs - logprobs_ref) - reward) * mask
