"""What a number of answers to each problem says of a model, and how sure it is.

Every metric gives one value a problem, and every interval is made by drawing problems: answers to one problem are
no independent evidence of how a model does on others. docs/metrics.md tells how well the intervals keep their word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_CELLS = 1 << 20
"""So many drawn values are held at once, 16 bytes each: a large problem set costs time, not memory."""

_RIGHT = object()
"""The class of all right answers in a vote."""


@dataclass(frozen=True)
class Interval:
    """A mean over problems and the ends of its interval."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside: of a difference, whether it is a clear one."""
        return self.low > 0 or self.high < 0


def avg_at_k(correct: np.ndarray) -> np.ndarray:
    """Each problem's share of right answers: [P, k] outcomes from 0 to 1 → [P].

    Raises ValueError unless every problem has the same number of answers, at least one.
    """
    return _table(correct).mean(axis=1)


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """The chance that k of a problem's n answers, drawn without replacement, hold a right one: [P, n] of 0/1 → [P].

    That is 1 − C(n − c, k) / C(n, k) with c right answers: unbiased for k fresh answers (Chen et al. 2021,
    arXiv 2107.03374). Raises ValueError for k < 1, k > n, or outcomes other than 0 and 1.
    """
    outcomes = _verdicts(correct)
    n = outcomes.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k from 1 to the number of answers a problem has, {n}")
    wrong = n - outcomes.sum(axis=1)
    missed = np.ones(len(outcomes))
    # The quotient of the binomials, factor by factor: each is at most 1, so nothing overflows or cancels.
    for drawn in range(k):
        missed *= np.maximum(wrong - drawn, 0) / (n - drawn)
    return 1.0 - missed


def maj_at_k(answers: Sequence[Sequence[str | None]], correct: np.ndarray) -> np.ndarray:
    """Whether each problem's most frequent answer is right, 0 to 1: [P, k] stated answers and 0/1 → [P].

    Where several answers are most frequent, it is the chance that one drawn fairly among them is right. None, no
    stated answer, has no vote; a problem without any vote scores 0. All right answers are one: `1/2` and `0.5`
    vote together if the verifier found both right. Wrong answers are told apart by their spelling, since nobody has
    compared them with each other, so where a wrong answer comes in several spellings the right one wins
    a little too often. An answer that was judged right once is right wherever it stands, also in a response that
    was cut off after it.

    Raises ValueError unless answers and verdicts have the same shape.
    """
    outcomes = _verdicts(correct)
    if [len(row) for row in answers] != [outcomes.shape[1]] * len(outcomes):
        raise ValueError(
            f"{len(outcomes)} problems need {outcomes.shape[1]} answers (or None) each, as their verdicts"
        )
    return np.array([_vote(row, right) for row, right in zip(answers, outcomes, strict=True)])


def bootstrap(values: np.ndarray, seed: int, resamples: int = 10_000, level: float = 0.95) -> Interval:
    """The mean of one value a problem, [P], and its interval from redrawing the problems (BCa, Efron 1987).

    It is of no width where all values are equal: then it says nothing about problems that were not asked.
    Raises ValueError without problems, for values that are no numbers, or for a level outside 0 to 1.
    """
    return macro({"": values}, seed, resamples, level)


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, seed: int, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """The mean difference ours − theirs on the same problems, both [P] in the same order, with its interval.

    Problems differ far more in difficulty than models do in skill; drawing both sides' values of a problem together
    takes the difficulty out. Raises ValueError where the lengths differ, and as `bootstrap`.
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if ours.shape != theirs.shape:
        raise ValueError(f"the two sides must answer the same problems: shapes {ours.shape} and {theirs.shape}")
    return bootstrap(ours - theirs, seed, resamples, level)


def macro(
    values_by_set: Mapping[str, np.ndarray], seed: int, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """The mean of the problem sets' means, each set of equal weight, with its interval; values as for `bootstrap`.

    Problems are redrawn within their set: the sets themselves were chosen, not drawn. The order of the sets does
    not matter. Raises ValueError as `bootstrap`, and without sets.
    """
    if not values_by_set:
        raise ValueError("there is no problem set")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"an interval needs a level between 0 and 1 and resamples, not {level} and {resamples}")
    sets = [_values(name, values_by_set[name]) for name in sorted(values_by_set)]
    mean = float(np.mean([values.mean() for values in sets]))
    drawn = np.mean(
        [_redrawn(values, np.random.default_rng([seed, place]), resamples) for place, values in enumerate(sets)],
        axis=0,
    )
    influence = np.concatenate([(values - values.mean()) / len(values) for values in sets])
    low, high = np.quantile(drawn, _bca_shares(mean, drawn, influence, level))
    return Interval(mean, float(low), float(high))


def sign_test(better: int, worse: int) -> float:
    """How often a fair coin splits `better` + `worse` problems at least so unevenly: the exact two-sided p-value.

    1 where no problem differs. It looks at which side wins each problem, not by how much.
    """
    differing = better + worse
    splits = tail = 1
    for count in range(min(better, worse)):
        splits = splits * (differing - count) // (count + 1)
        tail += splits
    return min(1.0, 2 * tail / 2**differing)


def _bca_shares(mean: float, drawn: np.ndarray, influence: np.ndarray, level: float) -> list[float]:
    """The two shares of the redrawn means between which the interval lies.

    A plain percentile interval has the ends at 2.5% and 97.5%. BCa moves them by the draws' median bias and by
    the acceleration, which for a mean is the skewness of what each problem adds to it.
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


def _redrawn(values: np.ndarray, random: np.random.Generator, resamples: int) -> np.ndarray:
    """The means of `resamples` draws of all problems with replacement, [resamples]."""
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
    """The outcomes as floats, [P, k]."""
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
        raise ValueError("an answer is right (1) or wrong (0); there are outcomes between")
    return table


def _values(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    of = f" of {name}" if name else ""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"the values{of} must be one a problem, and at least one; their shape is {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"the values{of} must be finite numbers")
    return values
