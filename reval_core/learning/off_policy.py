"""How far a policy has moved from the policies that wrote its training data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from reval_core.learning.update import Drawn

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The recorded quantiles of log π_θ(τ)/π_writer(τ) over the draws of a round."""


def writer_log_ratio(drawn: Drawn, log_ratio: np.ndarray) -> np.ndarray:
    """log π_θ(τ) − log π_writer(τ) [B] of a draw, in nats.

    Args:
        drawn: The draw.
        log_ratio: log π_θ(τ) − log π_ref(τ) [B], in nats.

    Returns:
        The log-ratios in float64; NaN where the writer's log-probs are unknown.
    """
    pairs = zip(drawn.old_logprobs, drawn.written, strict=True)
    by_writer = [np.sum(logprobs[mask], dtype=np.float64) for logprobs, mask in pairs]
    return log_ratio.astype(np.float64) + drawn.log_ref - np.array(by_writer)


def effective_share(log_weights: np.ndarray) -> float:
    """The relative effective sample size (Σw)² / (n Σw²) of the weights e^log_weights [n], between 1/n and 1."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (len(weights) * np.square(weights).sum()))
