"""Trainer–engine log-prob mismatch check.

With the same weights, engine and trainer must assign the same log-probs to the same tokens. An engine that
generates with stale weights, at another temperature or from other prompts raises no error and silently corrupts a
run. Therefore the two are compared in every round on all tokens that the policy wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_TEMPERATURES = (1.0, 0.6, 0.7, 0.8, 0.9, 1.2, 1.5)
"""Temperatures that an engine may have sampled at instead of the configured one."""

_FIRST_TOKENS = 2

_LEAST_TOKENS = 32
"""With fewer tokens the standard error of a lag is unreliable."""

_LARGEST_ERROR = 0.1
"""With a larger standard error no lag is reported: a slope of 1 must count as `Lag.stale`."""

_SURE = 3.0
"""The number of standard errors above 1/2 from which an engine counts as stale."""


@dataclass(frozen=True)
class Sample:
    """Trajectories of a round with the log-probs of the engine and of the trainer."""

    by_engine: Tensor
    """The engine's log π of each token [B, H], in nats."""
    mask: Tensor
    """[B, H] bool: the tokens that the policy wrote."""
    score: Callable[[float], Tensor]
    """Returns the trainer's log π [B, H] at a temperature."""
    temperature: float
    """The configured sampling temperature."""


def token_gap(by_trainer: Tensor, by_engine: Tensor, mask: Tensor) -> Tensor:
    """|log π_trainer − log π_engine| of each token, in nats.

    Args:
        by_trainer: The trainer's log-probs [B, H].
        by_engine: The engine's log-probs [B, H].
        mask: [B, H] bool: the tokens to compare.

    Returns:
        The gaps [B, H]: 0 outside the mask, infinite where either log-prob is NaN or infinite.
    """
    return (by_trainer - by_engine).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).masked_fill(~mask, 0.0)


def token_kl(other: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
    """Per-token estimate of KL(sampled ‖ other) on tokens drawn from the former: e^d − 1 − d.

    Here d = other − sampled. This is Schulman's k3 estimator: its mean equals that of −d (k1), and it is never
    negative.

    Args:
        other: The other policy's log-probs [B, H].
        sampled: The log-probs of the policy that sampled the tokens [B, H].
        mask: [B, H] bool: the tokens to compare.

    Returns:
        The estimates [B, H] in nats; 0 outside the mask.
    """
    difference = (other - sampled).masked_fill(~mask, 0.0)
    return (difference.expm1() - difference).nan_to_num(nan=torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class Lag:
    """How many rounds the engine's weights lag behind the trainer's: 0 is in sync, 1 is one round stale."""

    slope: float
    """The share of the last round's change in the trainer's log-probs that the engine lacks."""
    error: float
    """Its standard error."""
    tokens: int

    @property
    def stale(self) -> bool:
        """Whether the engine is significantly closer to the previous round's policy than to the current one."""
        return self.slope - _SURE * self.error > 0.5


def engine_lag(by_engine: np.ndarray, now: np.ndarray, before: np.ndarray) -> Lag | None:
    """Least-squares slope of `by_engine` − `now` on `before` − `now` over tokens.

    The standard error is heteroscedasticity-consistent (HC3, MacKinnon and White 1985), because tokens whose
    log-prob changed more are noisier. The trainer's rounding error is in both differences. Where the policy changed
    by less than that error, the slope tends to 1/2: from below for an engine in sync, from above for a stale one.

    Args:
        by_engine: The engine's log-probs of the tokens [N].
        now: The trainer's log-probs of the same tokens [N], at the same temperature.
        before: The log-probs [N] under the trainer's policy of the previous round.

    Returns:
        The lag, or None if the slope could not distinguish 0 from 1: the policy changed by less than the noise,
        there are too few tokens, or a log-prob is not finite.
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
    """The likely cause of a mismatch above `limit`: the hypothesis that best explains the engine's log-probs.

    Args:
        sample: The trajectories that were compared.
        earlier: Rounds of earlier policies, each with a function that returns its log-probs [B, H] of the sample at
            the sampling temperature.
        limit: `engine.mismatch_limit`, in nats per token.
        rounded: Returns the policy's log-probs [B, H] with the weights as they were published, if known.

    Returns:
        The cause and its remedy, for the error message.
    """
    now = sample.score(sample.temperature)
    gap = _mean_gap(sample, now)
    if gap == float("inf"):
        return "dtype: some log-probs are not finite, as when float16 overflows; use another engine.dtype"
    for temperature in _TEMPERATURES:
        if temperature != sample.temperature and _mean_gap(sample, sample.score(temperature)) < min(limit, gap / 4):
            return (
                f"temperature: the engine's log-probs match a temperature of {temperature:g}, but "
                f"rollouts.temperature is {sample.temperature:g}; a server needs --logprobs-mode processed_logprobs"
            )
    if rounded is not None and _mean_gap(sample, rounded()) < gap / 4:
        return "dtype: the weights lost too much precision when rounded; set engine.dtype: float32"
    for round, score in earlier:
        if _mean_gap(sample, score()) < min(limit, gap / 4):
            return f"stale weights: the engine still has the policy of round {round}"
    first = sample.mask.cumsum(dim=1) <= _FIRST_TOKENS
    if bool((sample.mask & ~first).any()) and _mean_gap(sample, now, first) > 4 * _mean_gap(sample, now, ~first):
        return "template: the mismatch is in the first tokens, so the engine's prompts differ from the trainer's"
    if _correlation(sample, now) > 0.9:
        return (
            "dtype: the log-probs differ only by rounding; set engine.dtype: float32 or raise engine.mismatch_limit"
        )
    return "stale weights: the engine's weights differ from the trainer's and match no checkpoint"


def _mean_gap(sample: Sample, by_trainer: Tensor, among: Tensor | None = None) -> float:
    mask = sample.mask if among is None else sample.mask & among
    return float(token_gap(by_trainer, sample.by_engine, mask).sum() / mask.sum().clamp(min=1))


def _correlation(sample: Sample, by_trainer: Tensor) -> float:
    pairs = torch.stack([by_trainer[sample.mask], sample.by_engine[sample.mask]]).cpu().double().numpy()
    return float(np.corrcoef(pairs)[0, 1])
