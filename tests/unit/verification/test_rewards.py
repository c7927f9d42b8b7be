"""Rewards and advantages from verdicts, compared with explicit calculations."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.config import Overlong, Reward
from reval_core.verification import Judgement, Verdict
from reval_core.verification.rewards import (
    advantages,
    outcomes,
    overlong_penalties,
    penalised,
    rewards,
    without_signal,
)

NAN = float("nan")


def judgements(verdicts: Sequence[Verdict]) -> list[Judgement]:
    return [Judgement(verdict, None, 0.0) for verdict in verdicts]


judged = st.lists(
    st.tuples(st.sampled_from(get_args(Verdict)), st.sampled_from(["a", "b", "c", "aa"])), min_size=1, max_size=20
)


def same(found: np.ndarray, wanted: list[float]) -> None:
    np.testing.assert_allclose(found, np.array(wanted), rtol=1e-12, atol=1e-12, equal_nan=True)


def teaches(verdict: str, truncated: str) -> bool:
    return verdict in ("correct", "wrong", "unparsed") or (verdict == "truncated" and truncated == "zero")


@pytest.mark.parametrize(
    ("truncated", "wanted"),
    [("zero", [1, 0, 0, 0, NAN, NAN]), ("drop", [1, 0, 0, NAN, NAN, NAN])],
)
def test_only_judged_responses_have_an_outcome(truncated: Any, wanted: list[float]) -> None:
    verdicts: list[Verdict] = ["correct", "wrong", "unparsed", "truncated", "timeout", "error"]
    same(outcomes(judgements(verdicts), Reward(truncated=truncated)), wanted)


def test_the_number_returned_by_a_function_is_the_outcome() -> None:
    judged = [
        Judgement("wrong", None, 0.0, 0.25),
        Judgement("correct", None, 0.0, 1.0),
        Judgement("error", None, 0.0),
    ]
    outcome = outcomes(judged, Reward())
    same(outcome, [0.25, 1, NAN])
    same(rewards(outcome, ["p", "p", "p"], Reward(kind="centred")), [-0.375, 0.375, NAN])
    same(rewards(outcome, ["p", "p", "p"], Reward(kind="signed")), [-0.5, 1, NAN])


def test_every_verdict_has_an_outcome() -> None:
    assert len(outcomes(judgements(get_args(Verdict)), Reward())) == len(get_args(Verdict))


def test_the_overlong_penalty_is_dapos() -> None:
    """Eq. 13 of arXiv 2503.14476, with L_max 10 and L_cache 4, at and around the limits of its cases."""
    lengths = [0, 5, 6, 7, 8, 9, 10]
    same(overlong_penalties(lengths, Overlong(buffer=4), 10), [0, 0, 0, -0.25, -0.5, -0.75, -1])
    same(overlong_penalties(lengths, Overlong(buffer=4, penalty=0.5), 10)[-2:], [-0.375, -0.5])
    assert not np.signbit(overlong_penalties([1], Overlong(buffer=4), 10)).any()


@pytest.mark.parametrize("kind", ["binary", "signed"])
def test_a_penalty_lowers_a_reward_of_any_kind_by_its_value(kind: Any) -> None:
    outcome, penalty = np.array([1.0, 0.0, NAN]), np.array([-0.25, -1.0, NAN])
    design, groups = Reward(kind=kind), ["p", "p", "p"]
    plain = rewards(outcome, groups, design)
    same(rewards(penalised(outcome, penalty, design), groups, design), list(plain + penalty))


def test_centred_rewards_are_centred_with_their_penalties() -> None:
    design = Reward(kind="centred")
    outcome = penalised(np.array([1.0, 1.0]), np.array([0.0, -0.5]), design)
    same(rewards(outcome, ["p", "p"], design), [0.25, -0.25])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, NAN]), st.sampled_from("abc")), min_size=1, max_size=12))
def test_a_group_without_signal_has_equal_outcomes(items: list[tuple[float, str]]) -> None:
    outcome, groups = np.array([value for value, _ in items]), [group for _, group in items]
    members = {group: {value for value, one in items if one == group and not math.isnan(value)} for group in groups}
    assert without_signal(outcome, groups).tolist() == [len(members[group]) < 2 for group in groups]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("binary", [1, 0, 1, NAN, 0, NAN]),
        ("signed", [1, -1, 1, NAN, -1, NAN]),
        ("centred", [1 / 3, -2 / 3, 1 / 3, NAN, 0, NAN]),
    ],
)
def test_a_timeout_has_no_reward_and_does_not_change_its_groups_mean(kind: Any, wanted: list[float]) -> None:
    outcome = np.array([1, 0, 1, NAN, 0, NAN])
    same(rewards(outcome, ["p", "p", "p", "p", "q", "q"], Reward(kind=kind)), wanted)


def test_an_advantage_is_the_distance_from_the_mean_in_standard_deviations() -> None:
    deviation = math.sqrt(1 / 3)  # of 1, 0, 0 with n − 1
    found = advantages(np.array([1, 0, NAN, 0]), ["p", "p", "p", "p"])
    same(found, [(2 / 3) / (deviation + 1e-6), (-1 / 3) / (deviation + 1e-6), NAN, (-1 / 3) / (deviation + 1e-6)])


@pytest.mark.parametrize("outcome", [[0, 0, 0], [1, 1, 1], [1, NAN, 1]])
def test_a_group_with_equal_outcomes_has_zero_advantages(outcome: list[float]) -> None:
    found = advantages(np.array(outcome), ["p", "p", "p"])
    same(found, [NAN if math.isnan(one) else 0 for one in outcome])


@pytest.mark.parametrize("outcome", [0.0, 1.0, NAN])
def test_the_advantage_of_a_group_of_one_is_its_outcome(outcome: float) -> None:
    same(advantages(np.array([outcome, 1, 0]), ["p", "q", "q"])[:1], [outcome])


@pytest.mark.parametrize("outcome", [0.0, 0.25, 1.0])
def test_the_only_judged_response_of_a_larger_group_has_zero_advantage(outcome: float) -> None:
    """The others timed out, so there is no baseline."""
    same(advantages(np.array([NAN, outcome, NAN, 1.0]), ["p", "p", "p", "q"]), [NAN, 0, NAN, 1])


def test_a_group_without_judged_responses_has_no_advantage() -> None:
    same(advantages(np.array([NAN, NAN, 1.0]), ["p", "p", "q"]), [NAN, NAN, 1])


def test_members_of_a_group_need_not_be_adjacent() -> None:
    outcome = np.array([1, 0, 0, 0, 1, 1])
    groups = ["p", "q", "p", "q", "p", "q"]
    order = np.argsort(groups, kind="stable")
    sorted_groups = [groups[place] for place in order]
    same(advantages(outcome, groups)[order], list(advantages(outcome[order], sorted_groups)))


@settings(max_examples=60, deadline=None)
@given(
    items=judged, kind=st.sampled_from(["binary", "centred", "signed"]), truncated=st.sampled_from(["zero", "drop"])
)
def test_rewards_match_their_definition(items: list[tuple[Verdict, str]], kind: Any, truncated: Any) -> None:
    design = Reward(kind=kind, truncated=truncated)
    verdicts, groups = [verdict for verdict, _ in items], [group for _, group in items]
    wanted = []
    for verdict, group in items:
        members = [one == "correct" for one, other in items if other == group and teaches(one, truncated)]
        value = float(verdict == "correct")
        if kind == "centred" and members:
            value -= statistics.fmean(members)
        if kind == "signed":
            value = 1.0 if verdict == "correct" else -1.0
        wanted.append(value if teaches(verdict, truncated) else NAN)
    same(rewards(outcomes(judgements(verdicts), design), groups, design), wanted)


@settings(max_examples=60, deadline=None)
@given(items=judged)
def test_advantages_match_their_definition(items: list[tuple[Verdict, str]]) -> None:
    groups = [group for _, group in items]
    wanted = []
    for verdict, group in items:
        members = [float(one == "correct") for one, other in items if other == group and teaches(one, "zero")]
        value = float(verdict == "correct")
        if len(members) > 1:
            value = (value - statistics.fmean(members)) / (statistics.stdev(members) + 1e-6)
        elif groups.count(group) > 1:
            value = 0.0
        wanted.append(value if teaches(verdict, "zero") else NAN)
    found = advantages(outcomes(judgements([verdict for verdict, _ in items]), Reward()), groups)
    np.testing.assert_allclose(found, np.array(wanted), rtol=1e-9, atol=1e-9, equal_nan=True)
