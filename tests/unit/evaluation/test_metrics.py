"""Metrics compared with brute force."""

from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from reval_core.evaluation.metrics import avg_at_k, maj_at_k, pass_at_k, sign_test


def test_avg_at_k_is_the_share_of_each_problem():
    assert avg_at_k(np.array([[1, 0, 0, 0], [1, 1, 1, 0], [0.5, 0.5, 1, 0]])).tolist() == [0.25, 0.75, 0.5]


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_pass_at_k_counts_the_subsets_that_include_a_right_answer(n):
    every_outcome = list(product([0, 1], repeat=n))
    for k in range(1, n + 1):
        subsets = list(combinations(range(n), k))
        counted = [sum(any(row[at] for at in subset) for subset in subsets) / len(subsets) for row in every_outcome]
        assert pass_at_k(np.array(every_outcome), k) == pytest.approx(counted, abs=1e-15)


def test_pass_at_k_is_exact_for_a_thousand_answers():
    rights = np.arange(1001)
    outcomes = np.arange(1000) < rights[:, None]
    for k in (1, 16, 500, 1000):
        exact = [1 - comb(1000 - int(c), k) / comb(1000, k) for c in rights]
        assert pass_at_k(outcomes, k) == pytest.approx(exact, abs=1e-13)


def test_pass_at_1_is_avg_at_k():
    outcomes = np.random.default_rng(3).integers(0, 2, (50, 7))
    assert pass_at_k(outcomes, 1) == pytest.approx(avg_at_k(outcomes), abs=1e-15)


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_k_rejects_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"pass@{k} needs k from 1 to 3, the number of answers per problem"):
        pass_at_k(np.zeros((2, 3)), k)


@pytest.mark.parametrize(
    ("answers", "correct", "value"),
    [
        (["3", "3", "4"], [1, 1, 0], 1.0),
        (["4", "3", "4"], [0, 1, 0], 0.0),
        (["3", "4"], [1, 0], 0.5),
        (["3", "4", "5"], [1, 0, 0], 1 / 3),
        (["4", "4", "5", "5", "3"], [0, 0, 0, 0, 1], 0.0),
        ([None, None, "3"], [0, 0, 1], 1.0),
        ([None, None, "4"], [0, 0, 0], 0.0),
        ([None, None], [0, 0], 0.0),
        (["1/2", "0.5", "4", "4"], [1, 1, 0, 0], 0.5),  # two spellings of the right answer vote together
        (["-1/2", "-0.5", "3"], [0, 0, 1], 1 / 3),  # those of a wrong answer do not
        (["3", "3", "4", "4", "4"], [1, 0, 0, 0, 0], 0.0),
        (["3", "3", "4"], [1, 0, 0], 1.0),  # the second 3 was stated before its response was truncated
    ],
)
def test_maj_at_k_is_whether_the_most_frequent_answer_is_right(answers, correct, value):
    assert maj_at_k([answers], np.array([correct])).tolist() == [value]


def test_maj_at_k_votes_per_problem():
    answers = [["3", "3", "4"], ["3", "3", "4"], [None, None, None]]
    correct = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert maj_at_k(answers, correct).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("answers", "rows"), [([["3"]], [[1, 0]]), ([["3", "4"]], [[1, 0]] * 2), ([["3", "4"], ["3"]], [[1, 0]] * 2)]
)
def test_maj_at_k_rejects_answers_without_a_verdict(answers, rows):
    with pytest.raises(ValueError, match=r"problems need 2 answers \(or None\) each"):
        maj_at_k(answers, np.array(rows))


@pytest.mark.parametrize(
    ("outcomes", "complaint"),
    [
        ([[1, 0], [1]], "every problem needs the same number of answers"),
        ([1, 0], r"outcomes must be \[problems, answers\]"),
        ([[], []], "with at least one answer"),
        ([[1, 2]], "must lie between 0 and 1"),
        ([[1, np.nan]], "must lie between 0 and 1"),
    ],
)
def test_outcomes_that_are_not_a_table_are_rejected(outcomes, complaint):
    with pytest.raises(ValueError, match=complaint):
        avg_at_k(outcomes)


def test_pass_and_maj_at_k_need_binary_verdicts():
    with pytest.raises(ValueError, match="outcomes in between"):
        pass_at_k(np.array([[0.5, 1]]), 1)
    with pytest.raises(ValueError, match="outcomes in between"):
        maj_at_k([["3", "4"]], np.array([[0.5, 1]]))


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (3, 3), (7, 2), (2, 7), (10, 0)])
def test_the_sign_test_counts_coin_splits(better, worse):
    differing = better + worse
    tosses = [sum(toss) for toss in product([0, 1], repeat=differing)]
    as_uneven = [heads for heads in tosses if abs(2 * heads - differing) >= abs(better - worse)]
    assert sign_test(better, worse) == len(as_uneven) / len(tosses)


def test_the_sign_test_holds_for_thousands_of_problems():
    assert sign_test(5000, 5000) == 1.0
    assert sign_test(5100, 4900) == pytest.approx(0.0466, abs=2e-4)  # 2 standard errors, with continuity correction
    assert 0 < sign_test(6000, 4000) < 1e-80
