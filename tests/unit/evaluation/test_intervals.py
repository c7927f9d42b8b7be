"""Intervals compared with simulations whose true value is known, and with theory."""

import numpy as np
import pytest

from reval_core.evaluation import intervals
from reval_core.evaluation.intervals import Interval, bootstrap, macro, student


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
        found = bootstrap(ours - theirs, seed=1, resamples=1000)
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
    monkeypatch.setattr(intervals, "_CELLS", 100)  # resampled in many small batches
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


def test_an_interval_without_sets_or_a_valid_level_is_rejected():
    with pytest.raises(ValueError, match="no problem set"):
        macro({}, seed=0)
    with pytest.raises(ValueError, match="the values of aime must be finite"):
        macro({"aime": np.array([np.inf])}, seed=0)
    with pytest.raises(ValueError, match="a level between 0 and 1"):
        bootstrap(np.zeros(3), seed=0, level=95)


def test_medians_of_equal_values_have_an_interval_of_zero_width_too():
    def middle(*samples, axis):
        return sum(np.median(values, axis=axis) for values in samples)

    equal, single = np.full(3, 4.0), np.array([9.0])
    assert intervals.resampled(13.0, [equal, single], middle, seed=0, method="percentile") == (13.0, 13.0)
    low, high = intervals.resampled(14.0, [np.array([4.0, 5.0, 8.0]), single], middle, seed=0, method="percentile")
    assert (low, high) == (13.0, 17.0), "only the first sample varies"


def test_students_interval_of_equal_values_has_zero_width():
    assert student([0.1, 0.1, 0.1]) == (0.1, 0.1)
    low, high = student([0.5, 0.6, 0.7])
    assert (low, high) == pytest.approx((0.6 - 4.3027 * 0.1 / 3**0.5, 0.6 + 4.3027 * 0.1 / 3**0.5), abs=1e-4)
