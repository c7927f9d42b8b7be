"""What every objective is given and what it gives back. This folder needs torch alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """B trajectories with responses of up to H tokens. Only `logprobs` and `value` carry gradients."""

    logprobs: Tensor
    """log π_θ(a_h|s_h) [B, H]; 0 on padding. At temperature 1, for GRPO at the one that was sampled at."""
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
    """log π(a_h|s_h) [B, H] of the policy that wrote the response, as the trainer computes it; NaN if not known."""
    engine_logprobs: Tensor
    """The same as the engine gave it [B, H], at the temperature that it sampled at; NaN if not known."""
    truncated: Tensor
    """[B] bool: true where the response was cut at the length limit."""
    mean_tokens: float
    """Written tokens a trajectory, over all trajectories of the update, not only these B."""

    @property
    def tokens(self) -> Tensor:
        """Written tokens of each trajectory [B], at least 1."""
        return self.mask.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class Outputs:
    """What an objective makes of each trajectory, [B] each. Only the loss carries a gradient."""

    loss: Tensor
    """Its mean over the trajectories of an update, weighted by the draw, is what the update descends."""
    delta: Tensor
    """Δ(τ), the residual, which prioritised sampling goes by; 0 for an objective that has none."""
    value_term: Tensor
    """The part of Δ that comes from V."""
    log_ratio: Tensor
    """log π_θ(τ) − log π_ref(τ)."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """What else is worth watching; the mean over an update goes to the table `updates` and to MLflow."""
