"""Confidence intervals, from SciPy: of means over problems, and of few repetitions with different seeds.

Equal values leave nothing to resample. Their interval has zero width and says nothing about other problems or
seeds; SciPy would return NaN. docs/metrics.md reports the measured coverage of the intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
_CELLS = 1 << 20
"""Resampled values held in memory at once, 16 bytes each: a large problem set costs time, not memory."""

_DECIMALS = 12
"""Means are rounded, so that resampled means equal to the observed one count as ties in whatever order they sum."""


@dataclass(frozen=True)
class Interval:
    """A mean over problems with its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0: for a difference, whether it is clear."""
        return self.low > 0 or self.high < 0


def resampled(
    value: float,
    samples: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray],
    seed: int,
    method: Literal["BCa", "percentile"] = "BCa",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Return the ends of the bootstrap interval of a statistic of independent samples.

    Args:
        value: The statistic of the samples themselves; both ends where no sample varies.
        samples: Each resampled separately, [N_i].
        statistic: Called with the samples and `axis`, along which it reduces each of them.
        seed: Seed of the resampling.
        method: BCa (Efron 1987), or percentiles for statistics without a usable jackknife, such as medians.
        resamples: Number of bootstrap resamples.
        level: Confidence level.

    Raises:
        ValueError: The level is not between 0 and 1, or there are no resamples.
    """
    from scipy import stats

    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"an interval needs a level between 0 and 1 and resamples, not {level} and {resamples}")
    varying = [place for place, values in enumerate(samples) if np.ptp(values) > 0]
    if not varying:
        return value, value

    def of_varying(*drawn: np.ndarray, axis: int) -> np.ndarray:
        found: list[Any] = [values[:1] for values in samples]  # the same in every resample
        for place, values in zip(varying, drawn, strict=True):
            found[place] = values
        return statistic(*found, axis=axis)

    found = stats.bootstrap(
        [samples[place] for place in varying],
        of_varying,
        vectorized=True,
        method=method,
        n_resamples=resamples,
        confidence_level=level,
        batch=max(1, _CELLS // max(len(samples[place]) for place in varying)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def bootstrap(values: np.ndarray, seed: int, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """Return the mean over problems with its BCa interval from resampling the problems.

    For a difference of two sides, `values` are the problems' differences: problems differ far more in difficulty
    than models do in skill, and pairing removes the difficulty.

    Args:
        values: One value per problem, [P].
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.
        level: Confidence level.

    Raises:
        ValueError: There are no problems, a value is not finite, or as for `resampled`.
    """
    return macro({"": values}, seed, resamples, level)


def macro(
    values_by_set: Mapping[str, np.ndarray], seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Return the mean of the problem sets' means, each set with equal weight, with its BCa interval.

    Problems are resampled within their set: the sets themselves were chosen, not sampled. The order of the sets
    does not matter.

    Args:
        values_by_set: One value per problem, [P], by the name of the set.
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.
        level: Confidence level.

    Raises:
        ValueError: There are no sets, or as for `bootstrap`.
    """
    if not values_by_set:
        raise ValueError("there is no problem set")
    sets = [_values(name, values_by_set[name]) for name in sorted(values_by_set)]
    mean = float(np.mean([values.mean() for values in sets]))
    return Interval(mean, *resampled(mean, sets, _mean_of_means, seed, resamples=resamples, level=level))


def student(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Return the ends of Student's interval of a mean: a bootstrap over three runs covers at most 75%."""
    from scipy import stats

    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
    return float(low), float(high)


def _mean_of_means(*sets: np.ndarray, axis: int) -> np.ndarray:
    means = [values.mean(axis=axis) for values in sets]
    return np.round(sum(means) / len(means), _DECIMALS)


def _values(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    of = f" of {name}" if name else ""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"the values{of} must be one per problem, and at least one; their shape is {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"the values{of} must be finite numbers")
    return values
