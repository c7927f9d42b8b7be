"""Metrics compared with brute force, and intervals with simulations whose true value is known."""

from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from reval_core.evaluation import metrics
from reval_core.evaluation.metrics import (
    Interval,
    avg_at_k,
    bootstrap,
    macro,
    maj_at_k,
    paired_bootstrap,
    pass_at_k,
    sign_test,
)


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


def simulated(random, problems, samples, skill):
    """Return shares of right answers to fresh problems, [problems]; the success rates are beta-distributed."""
    a, b = skill
    return random.binomial(samples, random.beta(a, b, problems)) / samples


def coverage(interval_of, truth, simulations=600):
    """Return the share of simulations whose interval covers the true value."""
    random = np.random.default_rng(7)
    found = [interval_of(random) for _ in range(simulations)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


# Over 4,000 simulations these cover 0.952, 0.950 and 0.959; 600 have a standard error of 0.009.
@pytest.mark.parametrize(
    ("problems", "samples", "skill"), [(30, 4, (2, 3)), (30, 16, (0.5, 0.5)), (100, 4, (0.2, 1.8))]
)
def test_intervals_cover_the_true_mean_in_95_of_100_simulations(problems, samples, skill):
    share = coverage(
        lambda random: bootstrap(simulated(random, problems, samples, skill), seed=1, resamples=1000),
        skill[0] / sum(skill),
    )
    assert 0.92 <= share <= 0.975


def test_resampling_answers_instead_of_problems_covers_far_too_little():
    def over_answers(random):
        rights = simulated(random, 30, 16, (0.5, 0.5)) * 16
        answers = (np.arange(16) < rights[:, None]).ravel()
        return bootstrap(answers, seed=1, resamples=200)

    assert coverage(over_answers, 0.5, simulations=200) < 0.7


def test_paired_intervals_cover_the_true_difference_in_95_of_100_and_are_narrower():
    widths = []

    def paired(random):
        ease = random.beta(1, 1, 60)
        ours, theirs = random.binomial(8, 0.9 * ease) / 8, random.binomial(8, 0.8 * ease) / 8
        found = paired_bootstrap(ours, theirs, seed=1, resamples=1000)
        apart = bootstrap(ours, 1, 200), bootstrap(theirs, 2, 200)
        widths.append((found.high - found.low, sum(one.high - one.low for one in apart)))
        return found

    assert 0.92 <= coverage(paired, 0.05, simulations=400) <= 0.975
    assert np.mean(widths, axis=0) @ [1, -0.5] < 0


def test_intervals_of_an_average_over_sets_cover_the_true_value_in_95_of_100():
    def averaged(random):
        sets = {"small": simulated(random, 30, 4, (1, 3)), "large": simulated(random, 200, 4, (3, 1))}
        return macro(sets, seed=1, resamples=1000)

    assert 0.92 <= coverage(averaged, 0.5, simulations=400) <= 0.975


def test_an_interval_of_normal_values_has_the_theoretical_width():
    values = np.random.default_rng(5).normal(2.0, 3.0, 400)
    found = bootstrap(values, seed=0)
    error = values.std() / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.02
    )
    narrow = bootstrap(values, seed=0, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * error, abs=0.02)


def test_an_interval_is_skewed_like_its_values():
    few = bootstrap(np.array([1.0] * 3 + [0.0] * 27), seed=0)
    many = bootstrap(1 - np.array([1.0] * 3 + [0.0] * 27), seed=0)
    assert few.high - few.mean > 1.3 * (few.mean - few.low)
    assert (many.low, many.high) == pytest.approx((1 - few.high, 1 - few.low), abs=0.035)


def test_the_average_weights_sets_equally():
    found = macro({"few": np.array([1.0, 0.0]), "many": np.zeros(98)}, seed=4)
    assert found.mean == 0.25
    assert (found.low, found.high) == (0.0, 0.5)  # only the small set varies


def test_the_average_does_not_depend_on_the_order_of_sets():
    random = np.random.default_rng(6)
    sets = {"b": random.random(30), "a": random.random(70)}
    assert macro(sets, seed=4) == macro(dict(reversed(sets.items())), seed=4)


def test_the_average_is_skewed_like_its_most_uncertain_set():
    skewed, even = np.array([1.0] * 2 + [0.0] * 58), np.arange(3000) % 2 * 1.0
    found = macro({"skewed": skewed, "even": even}, seed=0)
    assert found.high - found.mean > 2 * (found.mean - found.low)


def test_an_interval_depends_on_its_seed_alone(monkeypatch):
    values = np.random.default_rng(0).random(40)
    first = bootstrap(values, seed=1)
    np.random.default_rng().random(3)
    assert bootstrap(values, seed=1) == first
    assert bootstrap(values, seed=2) != first
    monkeypatch.setattr(metrics, "_CELLS", 100)  # resampled in many small batches
    assert bootstrap(values, seed=1) == first


def test_equal_values_have_an_interval_of_zero_width():
    assert bootstrap(np.full(30, 0.25), seed=0) == Interval(0.25, 0.25, 0.25)
    assert bootstrap(np.array([1.0]), seed=0) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "clear"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.2, False), (0, 0, False)]
)
def test_a_difference_is_clear_if_its_interval_excludes_0(low, high, clear):
    assert Interval((low + high) / 2, low, high).clear is clear


@pytest.mark.parametrize(
    ("values", "complaint"),
    [([], "at least one"), ([[1.0]], "one per problem"), ([1.0, np.nan], "finite numbers")],
)
def test_unusable_values_are_rejected(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        bootstrap(np.array(values), seed=0)


def test_an_interval_without_sets_pairs_or_a_valid_level_is_rejected():
    with pytest.raises(ValueError, match="no problem set"):
        macro({}, seed=0)
    with pytest.raises(ValueError, match="the values of aime must be finite"):
        macro({"aime": np.array([np.inf])}, seed=0)
    with pytest.raises(ValueError, match="the same problems"):
        paired_bootstrap(np.zeros(3), np.zeros(1), seed=0)
    with pytest.raises(ValueError, match="a level between 0 and 1"):
        bootstrap(np.zeros(3), seed=0, level=95)


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
