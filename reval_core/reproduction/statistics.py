"""Medians over seeds, ratios over prompts, and their bootstrap intervals."""

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
    return math.exp(np.mean([math.log(np.median(_filled(found, limit))) for found in counts.values()]))


def typical_over_seeds(counts: Counts, limit: float) -> Estimate:
    """Return `typical` with its interval from resampling the seeds within each prompt."""
    return Estimate(typical(counts, limit), *_ends(np.exp(_drawn(counts, limit, 0)), _seeds(counts)))


def speed_up(baseline: Counts, ours: Counts, limit: float) -> Estimate:
    """Return the ratio of `typical` of the baseline to ours, with its bootstrap interval over seeds.

    Seeds are resampled within each prompt and side; the prompts were chosen, not sampled. A median at `limit` means
    that the side did not reach the target, and the ratio is computed as if it had at that round.
    """
    drawn = [_drawn(side, limit, stream) for stream, side in enumerate((baseline, ours))]
    ends = _ends(np.exp(drawn[0] - drawn[1]), min(_seeds(baseline), _seeds(ours)))
    return Estimate(typical(baseline, limit) / typical(ours, limit), *ends)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean over runs with Student's 95% interval: a bootstrap over three runs covers at most 75%."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, -math.inf, math.inf)
    reach = float(student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, mean - reach, mean + reach)


def difference(ours: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Return the mean difference of runs with the same seeds, with Student's 95% interval over the pairs."""
    return mean_over_seeds(np.subtract(ours, baseline).tolist())


def _ends(drawn: np.ndarray, seeds: int) -> tuple[float, float]:
    """Return the percentile interval of a resampled statistic. With two seeds it would cover only 2 in 3."""
    if seeds < _FEWEST:
        return -math.inf, math.inf
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _seeds(counts: Counts) -> int:
    return min(map(len, counts.values()))


def _drawn(side: Counts, limit: float, stream: int) -> np.ndarray:
    """Return the log of `typical` under resampled seeds, [RESAMPLES]."""
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
