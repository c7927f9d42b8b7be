"""Accuracy metrics from several answers per problem, and their bootstrap intervals.

Every metric gives one value per problem, and every interval resamples problems: several answers to one problem are
not independent evidence about other problems. docs/metrics.md reports the measured coverage of the intervals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_CELLS = 1 << 20
"""Resampled values held in memory at once, 16 bytes each: a large problem set costs time, not memory."""

_RIGHT = object()
"""Stands for all right answers in a vote."""


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


def avg_at_k(correct: np.ndarray) -> np.ndarray:
    """Return each problem's share of right answers, [P].

    Args:
        correct: Outcomes from 0 to 1, [P, k].

    Raises:
        ValueError: The problems have different numbers of answers, or none.
    """
    return _table(correct).mean(axis=1)


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Return the probability that k of a problem's n answers, drawn without replacement, include a right one, [P].

    This is 1 − C(n − c, k) / C(n, k) with c right answers: unbiased for k fresh answers (Chen et al. 2021,
    arXiv 2107.03374).

    Args:
        correct: Outcomes 0 or 1, [P, n].
        k: Number of answers drawn, 1 to n.

    Raises:
        ValueError: k is out of range, or there are outcomes other than 0 and 1.
    """
    outcomes = _verdicts(correct)
    n = outcomes.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k from 1 to {n}, the number of answers per problem")
    wrong = n - outcomes.sum(axis=1)
    missed = np.ones(len(outcomes))
    # The quotient of the binomials, factor by factor: each is at most 1, so nothing overflows or cancels.
    for drawn in range(k):
        missed *= np.maximum(wrong - drawn, 0) / (n - drawn)
    return 1.0 - missed


def maj_at_k(answers: Sequence[Sequence[str | None]], correct: np.ndarray) -> np.ndarray:
    """Return whether each problem's most frequent answer is right, 0 to 1, [P].

    With several most frequent answers it is the probability that one of them, chosen at random, is right. Right
    answers vote together: `1/2` and `0.5` if the verifier judged both right. Wrong answers are distinguished by
    their spelling, since they are not compared with each other; where a wrong answer has several spellings, the
    right one wins slightly too often. An answer that was judged right once counts as right in every response,
    including one that was truncated after it.

    Args:
        answers: Stated answers, [P, k]; None has no vote, and a problem without votes has the value 0.
        correct: Outcomes 0 or 1, [P, k].

    Raises:
        ValueError: Answers and outcomes have different shapes.
    """
    outcomes = _verdicts(correct)
    if [len(row) for row in answers] != [outcomes.shape[1]] * len(outcomes):
        raise ValueError(
            f"{len(outcomes)} problems need {outcomes.shape[1]} answers (or None) each, one per verdict"
        )
    return np.array([_vote(row, right) for row, right in zip(answers, outcomes, strict=True)])


def bootstrap(values: np.ndarray, seed: int, resamples: int = 10_000, level: float = 0.95) -> Interval:
    """Return the mean over problems with its interval from resampling the problems (BCa, Efron 1987).

    The interval has zero width where all values are equal: it then says nothing about other problems.

    Args:
        values: One value per problem, [P].
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.
        level: Confidence level.

    Raises:
        ValueError: There are no problems, a value is not finite, or the level is not between 0 and 1.
    """
    return macro({"": values}, seed, resamples, level)


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, seed: int, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Return the mean difference ours − theirs on the same problems, with its interval.

    Problems differ far more in difficulty than models do in skill; resampling both sides' values of a problem
    together removes the difficulty.

    Args:
        ours: One value per problem, [P].
        theirs: The other side's values, [P], in the same order of problems.
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.
        level: Confidence level.

    Raises:
        ValueError: The lengths differ, or as for `bootstrap`.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if ours.shape != theirs.shape:
        raise ValueError(f"the two sides must answer the same problems: shapes {ours.shape} and {theirs.shape}")
    return bootstrap(ours - theirs, seed, resamples, level)


def macro(
    values_by_set: Mapping[str, np.ndarray], seed: int, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Return the mean of the problem sets' means, each set with equal weight, with its interval.

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
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"an interval needs a level between 0 and 1 and resamples, not {level} and {resamples}")
    sets = [_values(name, values_by_set[name]) for name in sorted(values_by_set)]
    mean = float(np.mean([values.mean() for values in sets]))
    drawn = np.mean(
        [_resampled(values, np.random.default_rng([seed, place]), resamples) for place, values in enumerate(sets)],
        axis=0,
    )
    influence = np.concatenate([(values - values.mean()) / len(values) for values in sets])
    low, high = np.quantile(drawn, _bca_shares(mean, drawn, influence, level))
    return Interval(mean, float(low), float(high))


def sign_test(better: int, worse: int) -> float:
    """Return the exact two-sided p-value of the sign test.

    It is the probability that a fair coin splits `better` + `worse` problems at least as unevenly, and 1 where no
    problem differs. The test considers which side wins each problem, not by how much.
    """
    differing = better + worse
    splits = tail = 1
    for count in range(min(better, worse)):
        splits = splits * (differing - count) // (count + 1)
        tail += splits
    return min(1.0, 2 * tail / 2**differing)


def _bca_shares(mean: float, drawn: np.ndarray, influence: np.ndarray, level: float) -> list[float]:
    """Return the two quantile levels of the resampled means at the ends of the interval.

    A plain percentile interval has its ends at 2.5% and 97.5%. BCa shifts them by the median bias of the resamples
    and by the acceleration, which for a mean is the skewness of the problems' contributions.
    """
    spread = float(np.sum(influence**2))
    if spread == 0:
        return [(1 - level) / 2, (1 + level) / 2]
    normal = NormalDist()
    near = 1e-9 * spread**0.5
    below = float(np.mean(drawn < mean - near) + np.mean(drawn <= mean + near)) / 2
    bias = normal.inv_cdf(min(max(below, 0.5 / len(drawn)), 1 - 0.5 / len(drawn)))
    acceleration = float(np.sum(influence**3)) / (6 * spread**1.5)
    reach = normal.inv_cdf((1 + level) / 2)
    return [normal.cdf(bias + (bias + end) / (1 - acceleration * (bias + end))) for end in (-reach, reach)]


def _resampled(values: np.ndarray, random: np.random.Generator, resamples: int) -> np.ndarray:
    """Return the means of `resamples` draws of all problems with replacement, [resamples]."""
    rows = max(1, _CELLS // len(values))
    return np.concatenate(
        [
            values[random.integers(0, len(values), (min(rows, resamples - start), len(values)))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )


def _vote(answers: Sequence[str | None], right: np.ndarray) -> float:
    right_answers = {answer for answer, outcome in zip(answers, right, strict=True) if outcome}
    votes = Counter(
        _RIGHT if outcome or answer in right_answers else answer
        for answer, outcome in zip(answers, right, strict=True)
        if outcome or answer is not None
    )
    most = max(votes.values(), default=0)
    winners = [answer for answer, count in votes.items() if count == most]
    return 1 / len(winners) if _RIGHT in winners else 0.0


def _table(correct: np.ndarray) -> np.ndarray:
    """Return the outcomes as floats, [P, k]."""
    try:
        table = np.asarray(correct, float)
    except ValueError as error:
        raise ValueError("every problem needs the same number of answers") from error
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(f"outcomes must be [problems, answers], with at least one answer, not {table.shape}")
    if not ((table >= 0) & (table <= 1)).all():
        raise ValueError("outcomes must lie between 0 and 1")
    return table


def _verdicts(correct: np.ndarray) -> np.ndarray:
    table = _table(correct)
    if not ((table == 0) | (table == 1)).all():
        raise ValueError("an answer is right (1) or wrong (0); found outcomes in between")
    return table


def _values(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    of = f" of {name}" if name else ""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"the values{of} must be one per problem, and at least one; their shape is {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"the values{of} must be finite numbers")
    return values
