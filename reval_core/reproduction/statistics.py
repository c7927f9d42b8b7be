"""Medians over seeds, ratios over prompts, and their bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reval_core.evaluation.intervals import resampled, student

SEED = 0
_FEWEST = 3
"""Minimum number of seeds to resample. With 3 seeds and 3 prompts, intervals of equal sides cover 1 in 96%."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval over seeds, which is (−∞, ∞) if there are too few seeds."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float] | None:
        """Both ends, or None if they are infinite."""
        return [self.low, self.high] if math.isfinite(self.low) else None

    def to_json(self) -> dict[str, Any]:
        """Return the value and the ends of the interval."""
        low, high = self.interval or (None, None)
        return {"value": self.value, "low": low, "high": high}

    def above(self, least: float) -> bool | None:
        """Return True if the whole interval is above `least`, False if the value is not, and None in between."""
        if self.value <= least:
            return False
        return True if self.low > least else None

    def text(self, form: str, unit: str = "") -> str:
        """Format the number with its unit and its interval; `form` is the format spec of each."""
        interval = f"{self.low:{form}} to {self.high:{form}}" if self.interval else "too few seeds for an interval"
        return f"{self.value:{form}}{unit} ({interval})"


Counts = Mapping[str, Sequence[float | None]]
"""Maps a prompt to one count per seed: rounds until the target was reached, None where it was not."""


def typical(counts: Counts, limit: float) -> float:
    """Return the geometric mean over prompts of medians over seeds. None counts as `limit`."""
    return math.exp(_log_typical(*_filled(counts, limit), axis=-1))


def typical_over_seeds(counts: Counts, limit: float) -> Estimate:
    """Return `typical` with its interval from resampling the seeds within each prompt."""
    return _estimate(_filled(counts, limit), _log_typical)


def speed_up(baseline: Counts, ours: Counts, limit: float) -> Estimate:
    """Return the ratio of `typical` of the baseline to ours, with its bootstrap interval over seeds.

    Seeds are resampled within each prompt and side; the prompts were chosen, not sampled. A median at `limit` means
    that the side did not reach the target, and the ratio is computed as if it had at that round.
    """

    def log_ratio(*filled: np.ndarray, axis: int) -> Any:
        sides = filled[: len(baseline)], filled[len(baseline) :]
        return _log_typical(*sides[0], axis=axis) - _log_typical(*sides[1], axis=axis)

    return _estimate([*_filled(baseline, limit), *_filled(ours, limit)], log_ratio)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean over runs with Student's 95% interval: a bootstrap over three runs covers at most 75%."""
    mean = float(np.mean(values))
    return Estimate(mean, *(student(values) if len(values) > 1 else (-math.inf, math.inf)))


def difference(ours: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Return the mean difference of runs with the same seeds, with Student's 95% interval over the pairs."""
    return mean_over_seeds(np.subtract(ours, baseline).tolist())


def _estimate(filled: Sequence[np.ndarray], log_of: Callable[..., Any]) -> Estimate:
    """Return exp of a statistic of medians with its percentile interval: with two seeds, it would cover 2 in 3."""
    value = float(log_of(*filled, axis=-1))
    if min(map(len, filled)) < _FEWEST:
        return Estimate(math.exp(value), -math.inf, math.inf)
    low, high = resampled(value, filled, log_of, SEED, method="percentile")
    return Estimate(*(math.exp(one) for one in (value, low, high)))


def _log_typical(*filled: np.ndarray, axis: int) -> Any:
    return sum(np.log(np.median(found, axis=axis)) for found in filled) / len(filled)


def _filled(counts: Counts, limit: float) -> list[np.ndarray]:
    return [np.array([limit if one is None else one for one in found], float) for found in counts.values()]
