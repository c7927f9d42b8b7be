"""Medians over seeds, ratios over prompts, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

RESAMPLES = 10_000
SEED = 0
_FEWEST = 3
"""Seeds that are redrawn at least. With three, and three prompts, intervals of equals hold 1 in 96 of 100 draws."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval over seeds, which has no ends (±∞) where there are too few of them."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float] | None:
        """Both ends, if it has any."""
        return [self.low, self.high] if math.isfinite(self.low) else None

    def to_json(self) -> dict[str, Any]:
        """Value and ends."""
        low, high = self.interval or (None, None)
        return {"value": self.value, "low": low, "high": high}

    def above(self, least: float) -> bool | None:
        """Whether it lies above a number: with its whole interval or not at all; None if only the value does."""
        if self.value <= least:
            return False
        return True if self.low > least else None

    def text(self, form: str, unit: str = "") -> str:
        """The number with its unit, and its interval; `form` is how each is written."""
        interval = f"{self.low:{form}} to {self.high:{form}}" if self.interval else "too few seeds for an interval"
        return f"{self.value:{form}}{unit} ({interval})"


Counts = Mapping[str, Sequence[float | None]]
"""By prompt, a count for each seed: rounds until something happened, None where it did not."""


def typical(counts: Counts, limit: float) -> float:
    """The geometric mean over prompts of medians over seeds. A run that did not get there counts as `limit`."""
    return math.exp(np.mean([math.log(np.median(_filled(found, limit))) for found in counts.values()]))


def typical_over_seeds(counts: Counts, limit: float) -> Estimate:
    """`typical` with its interval from redrawing the seeds within each prompt."""
    return Estimate(typical(counts, limit), *_ends(np.exp(_drawn(counts, limit, 0)), _seeds(counts)))


def speed_up(baseline: Counts, ours: Counts, limit: float) -> Estimate:
    """How many times more the baseline takes: the ratio of `typical`, with its interval from redrawing the seeds.

    Seeds are redrawn within each prompt and side; the prompts were chosen, not drawn. Where a median is `limit`,
    the side never got there, and the ratio is as if it had just then.
    """
    drawn = [_drawn(side, limit, stream) for stream, side in enumerate((baseline, ours))]
    ends = _ends(np.exp(drawn[0] - drawn[1]), min(_seeds(baseline), _seeds(ours)))
    return Estimate(typical(baseline, limit) / typical(ours, limit), *ends)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one number a run, with Student's 95% interval: redrawing three runs would cover 75% at most."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, -math.inf, math.inf)
    reach = float(student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, mean - reach, mean + reach)


def difference(ours: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """The mean difference of runs with the same seeds, with Student's 95% interval over the pairs."""
    return mean_over_seeds(np.subtract(ours, baseline).tolist())


def _ends(drawn: np.ndarray, seeds: int) -> tuple[float, float]:
    """The percentile interval of a redrawn statistic. Redrawing two seeds would cover two times in three only."""
    if seeds < _FEWEST:
        return -math.inf, math.inf
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _seeds(counts: Counts) -> int:
    return min(map(len, counts.values()))


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
