"""Accuracy metrics from several answers per problem.

Every metric gives one value per problem, and intervals resample problems: several answers to one problem are not
independent evidence about other problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

_RIGHT = object()
"""Stands for all right answers in a vote."""


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
