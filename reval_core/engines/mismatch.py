"""The gap canary: engine and trainer must give the same tokens the same log-probabilities, under the same weights.

An engine that generates with old weights, at another temperature or from other prompts goes on without an error and
spoils a run in silence. So every round the two are compared on all tokens that the policy wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_TEMPERATURES = (1.0, 0.6, 0.7, 0.8, 0.9, 1.2, 1.5)
"""What an engine may have sampled at instead."""

_FIRST_TOKENS = 2

_LEAST_TOKENS = 32
"""With fewer the standard error of a lag is itself a guess."""

_LARGEST_ERROR = 0.1
"""A lag is known where 1 is so certainly more than 1/2 that `Lag.stale` would say so."""

_SURE = 3.0
"""Standard errors."""


@dataclass(frozen=True)
class Sample:
    """Some trajectories of a round, as engine and trainer see them."""

    by_engine: Tensor
    """log π of each token [B, H], by the engine."""
    mask: Tensor
    """[B, H] bool: the tokens that the policy itself wrote."""
    score: Callable[[float], Tensor]
    """The trainer's log π [B, H] at a temperature."""
    temperature: float
    """What the responses were to be sampled at."""


def token_gap(by_trainer: Tensor, by_engine: Tensor, mask: Tensor) -> Tensor:
    """|log π by the trainer − by the engine| of each token [B, H]; 0 outside the mask.

    Infinite where either is no number: that must not pass for agreement.
    """
    return (by_trainer - by_engine).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).masked_fill(~mask, 0.0)


def token_kl(other: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
    """An estimate of KL(sampled ‖ other) at each token [B, H] of a sample of the former: e^d − 1 − d ≥ 0.

    `other` and `sampled` are log π of the tokens, and d = other − sampled. Its mean is that of −d, and it is never
    negative (Schulman's k3; −d is his k1).
    """
    difference = (other - sampled).masked_fill(~mask, 0.0)
    return (difference.expm1() - difference).nan_to_num(nan=torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class Lag:
    """By how many rounds an engine's weights are behind the trainer's: 0 is in step, 1 is one round stale."""

    slope: float
    """Of what the last round changed in the trainer's log-probs, the share that the engine lacks."""
    error: float
    """Its standard error."""
    tokens: int

    @property
    def stale(self) -> bool:
        """Whether the engine is surely nearer the policy of the round before than the one that it should have."""
        return self.slope - _SURE * self.error > 0.5


def engine_lag(by_engine: np.ndarray, now: np.ndarray, before: np.ndarray) -> Lag | None:
    """The slope of `by_engine` − `now` on `before` − `now` over tokens, [N] each, by least squares.

    They are log π of the same tokens by the engine, by the trainer, and by the trainer's policy of the round
    before, all at one temperature. The standard error is HC3's (MacKinnon and White 1985), since tokens that moved
    far are noisier. None where the slope could not tell 0 from 1: the policy moved less than the noise, there are
    too few tokens, or a figure is no number.

    The trainer's own rounding is in both differences, so where it moved no more than that the slope tends to 1/2,
    from below for an engine in step and from above for a stale one.
    """
    apart, moved = (np.asarray(one, np.float64) - np.asarray(now, np.float64) for one in (by_engine, before))
    tokens = len(apart)
    if tokens < _LEAST_TOKENS or not np.isfinite([apart, moved]).all():
        return None
    apart, moved = apart - apart.mean(), moved - moved.mean()
    spread = moved @ moved
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = moved @ apart / spread
        left = (apart - slope * moved) / (1 - 1 / tokens - moved**2 / spread)
        error = np.sqrt(np.square(moved * left).sum()) / spread
    return Lag(float(slope), float(error), tokens) if error <= _LARGEST_ERROR else None


def likely_cause(
    sample: Sample,
    earlier: Iterable[tuple[int, Callable[[], Tensor]]],
    limit: float,
    rounded: Callable[[], Tensor] | None = None,
) -> str:
    """Why engine and trainer are further apart than `limit`: what explains the engine's figures, in words.

    `earlier` gives rounds of earlier policies, and what those make of the sample at its temperature; `rounded` what
    the policy makes of it with weights as they were handed over, where that is known.
    """
    now = sample.score(sample.temperature)
    gap = _mean_gap(sample, now)
    if gap == float("inf"):
        return "dtype: some figures are no numbers, as when float16 overflows; take another engine.dtype"
    for temperature in _TEMPERATURES:
        if temperature != sample.temperature and _mean_gap(sample, sample.score(temperature)) < min(limit, gap / 4):
            return (
                f"temperature: the engine's figures are those at {temperature:g}, and rollouts.temperature is "
                f"{sample.temperature:g}; a server needs --logprobs-mode processed_logprobs"
            )
    if rounded is not None and _mean_gap(sample, rounded()) < gap / 4:
        return "dtype: the weights lost too much when they were rounded; take engine.dtype: float32"
    for round, score in earlier:
        if _mean_gap(sample, score()) < min(limit, gap / 4):
            return f"stale weights: the engine still has the policy of round {round}"
    first = sample.mask.cumsum(dim=1) <= _FIRST_TOKENS
    if bool((sample.mask & ~first).any()) and _mean_gap(sample, now, first) > 4 * _mean_gap(sample, now, ~first):
        return "template: the gap is in the first tokens, so the engine was given other prompts than the trainer"
    if _correlation(sample, now) > 0.9:
        return "dtype: the figures agree but for rounding; take engine.dtype: float32 or raise engine.gap_limit"
    return "stale weights: the engine generates with other weights than the trainer's, and no checkpoint has them"


def _mean_gap(sample: Sample, by_trainer: Tensor, among: Tensor | None = None) -> float:
    mask = sample.mask if among is None else sample.mask & among
    return float(token_gap(by_trainer, sample.by_engine, mask).sum() / mask.sum().clamp(min=1))


def _correlation(sample: Sample, by_trainer: Tensor) -> float:
    pairs = torch.stack([by_trainer[sample.mask], sample.by_engine[sample.mask]]).cpu().double().numpy()
    return float(np.corrcoef(pairs)[0, 1])
