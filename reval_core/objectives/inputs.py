"""The inputs and outputs of every objective. This package depends only on torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """B trajectories with responses of up to H tokens. Only `logprobs` and `value` carry gradients."""

    logprobs: Tensor
    """log π_θ(a_h|s_h) [B, H]; 0 on padding. At temperature 1; for GRPO, at the sampling temperature."""
    mask: Tensor
    """[B, H] bool: true on tokens written by the policy."""
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
    """log π(a_h|s_h) [B, H] of the policy that wrote the response, as computed by the trainer; NaN if unknown."""
    engine_logprobs: Tensor
    """The same as reported by the engine [B, H], at its sampling temperature; NaN if unknown."""
    truncated: Tensor
    """[B] bool: true where the response was cut at the length limit."""
    mean_tokens: float
    """Mean written tokens per trajectory, over all trajectories of the update, not only these B."""

    @property
    def tokens(self) -> Tensor:
        """Written tokens of each trajectory [B], at least 1."""
        return self.mask.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class Outputs:
    """The results of an objective, one per trajectory, [B] each. Only the loss carries a gradient."""

    loss: Tensor
    """An update minimises its mean over the trajectories, weighted by the importance weights of the draw."""
    delta: Tensor
    """Δ(τ), the residual, which prioritised sampling uses; 0 for an objective without one."""
    value_term: Tensor
    """The part of Δ that comes from V."""
    log_ratio: Tensor
    """log π_θ(τ) − log π_ref(τ)."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Further metrics; their means over an update are recorded in the table `updates` and in MLflow."""
