"""Medians over seeds, ratios over prompts, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval over seeds."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Value and ends."""
        return vars(self)


Counts = Mapping[str, Sequence[float | None]]
"""By prompt, a count for each seed: rounds until something happened, None where it did not."""


def typical(counts: Counts, limit: float) -> float:
    """The geometric mean over prompts of medians over seeds. A run that did not get there counts as `limit`."""
    return math.exp(np.mean([math.log(np.median(_filled(found, limit))) for found in counts.values()]))


def speed_up(baseline: Counts, ours: Counts, limit: float) -> Estimate:
    """How many times more the baseline takes: the ratio of `typical`, with its interval from redrawing the seeds.

    Seeds are redrawn within each prompt and side; the prompts were chosen, not drawn. Where a median is `limit`,
    the side never got there, and the ratio is as if it had just then.
    """
    drawn = [_drawn(side, limit, stream) for stream, side in enumerate((baseline, ours))]
    ratios = np.exp(drawn[0] - drawn[1])
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Estimate(typical(baseline, limit) / typical(ours, limit), float(low), float(high))


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one number a run, with its interval from redrawing the runs."""
    return estimate(lambda found: found.mean(axis=-1), values)


def difference(ours: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """The mean difference of runs with the same seeds, with its interval from redrawing the seeds in pairs."""
    return mean_over_seeds(np.subtract(ours, baseline).tolist())


def estimate(statistic: Callable[[np.ndarray], np.ndarray], values: Sequence[float]) -> Estimate:
    """A statistic over the last axis of values, with its percentile interval from redrawing them."""
    given = np.asarray(values, float)
    rng = np.random.default_rng(SEED)
    found = statistic(given[rng.integers(len(given), size=(RESAMPLES, len(given)))])
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(float(statistic(given)), float(low), float(high))


def _drawn(side: Counts, limit: float, stream: int) -> np.ndarray:
    """The log of `typical` under redrawn seeds, [RESAMPLES]."""
    rng = np.random.default_rng([SEED, stream])
    logs = []
    for found in side.values():
        filled = _filled(found, limit)
        drawn = filled[rng.integers(len(filled), size=(RESAMPLES, len(filled)))]
        logs.append(np.log(np.median(drawn, axis=1)))
    means: np.ndarray = np.mean(logs, axis=0)
    return means


def _filled(found: Sequence[float | None], limit: float) -> np.ndarray:
    return np.array([limit if one is None else one for one in found], float)
