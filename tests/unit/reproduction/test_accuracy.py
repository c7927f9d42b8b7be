"""The measures of the arithmetic figures on synthetic runs with known values."""

from __future__ import annotations

from typing import Any

import pytest

from reval_core.reproduction.measures import beyond, one_rollout
from reval_core.reproduction.measures.accuracy import methods, reference_resets, reward_designs, strengths
from reval_core.reproduction.measures.stability import gradients
from tests.runs import small_config
from tests.unit.reproduction.test_reproduction import Made

SUMS = "1-digit sums"
OTHER = "1-digit differences"


def arithmetic(arm: str, final: list[float], rounds: int = 8, kl: float = 0.1, **changes: Any) -> list[Made]:
    """Return one run per seed whose accuracy goes from 0.4 to `final`; on the other set it is half of that."""
    config = small_config(**changes)
    rows = [
        {
            "round": number,
            "kl": kl * number,
            "largest_gradient": 2.0,
            "residual_left": 0.5,
            "updates": config.learner.updates,
            "generation_seconds": 1.0,
            "learning_seconds": 3.0,
        }
        for number in range(1, rounds + 1)
    ]
    curves = [{at: 0.4 + (last - 0.4) * at / rounds for at in range(0, rounds + 1, 2)} for last in final]
    return [
        Made(arm, None, seed, config, rows, {SUMS: curve, OTHER: {at: value / 2 for at, value in curve.items()}})
        for seed, curve in enumerate(curves)
    ]


def test_methods_are_compared_over_all_sets() -> None:
    records = [
        *arithmetic("GRPO", [0.8, 0.82]),
        *arithmetic("TBRM", [0.7, 0.72]),
        *arithmetic("ReVal", [0.9, 0.92]),
    ]
    found = methods(records)
    assert found.verdict == "reproduced"
    assert found.numbers["ahead_of"]["GRPO"]["value"] == pytest.approx(0.75 * 0.1)
    assert found.numbers["accuracy"]["ReVal"] == pytest.approx({SUMS: 0.91, OTHER: 0.455})
    assert found.numbers["ahead_where_not_practised"]["TBRM"]["value"] == pytest.approx(0.5 * 0.2)
    assert found.tables[0].rows[0] == ["before", "40.0", "20.0", "30.0"]
    behind = [*arithmetic("GRPO", [0.95, 0.95]), *records[2:]]
    assert methods(behind).verdict == "in part"
    doubtful = [*arithmetic("GRPO", [0.85, 0.95]), *records[2:]]
    assert methods(doubtful).verdict == "in part", "a lead of one point with seeds on both sides is not clear"


def test_one_interval_must_be_best() -> None:
    def runs(late: float, seeds: int = 2) -> list[Made]:
        final = {"never": 0.6, "right": 0.9, "late": late}
        return [one for arm, last in final.items() for one in arithmetic(arm, [last] * seeds)]

    assert reference_resets(runs(0.8)).verdict == "reproduced"
    assert reference_resets(runs(0.95)).verdict == "in part"
    alone = reference_resets(runs(0.8, seeds=1))
    assert alone.verdict == "undecided", "one seed has no interval"
    assert "+30.0 (too few seeds for an interval) points over never" in alone.says
    assert alone.numbers["ahead_of"]["never"] == {"value": pytest.approx(0.3), "low": None, "high": None}


def test_the_best_beta_is_intermediate_and_the_kl_falls_with_beta() -> None:
    def runs(middle: float, kl: float) -> list[Made]:
        return [
            *arithmetic("β 0.01", [0.5], kl=0.5, objective__beta=0.01),
            *arithmetic("β 0.1", [middle], objective__beta=0.1),
            *arithmetic("β 1", [0.6], kl=kl, objective__beta=1.0),
        ]

    assert strengths(runs(0.9, 0.01)).verdict == "reproduced"
    assert strengths(runs(0.55, 0.01)).verdict == "in part"
    assert strengths(runs(0.55, 0.9)).verdict == "not"


def test_centred_rewards_must_be_best_and_signed_ones_worst() -> None:
    def runs(**final: float) -> list[Made]:
        return [one for arm, last in final.items() for one in arithmetic(arm, [last])]

    assert reward_designs(runs(**{"centred": 0.9, "0/1": 0.8, "±1": 0.7})).verdict == "reproduced"
    assert reward_designs(runs(**{"centred": 0.9, "0/1": 0.6, "±1": 0.7})).verdict == "in part"
    assert reward_designs(runs(**{"centred": 0.6, "0/1": 0.8, "±1": 0.7})).verdict == "not"


def test_gradients_are_compared_at_the_smallest_beta() -> None:
    regression = {"objective": {"kind": "regression", "beta": 0.01}}
    records = [
        *arithmetic("ReVal", [0.9], objective__beta=0.01),
        *arithmetic("regression", [0.5], **regression),
    ]
    records[1].rounds = [{**row, "largest_gradient": 50.0} for row in records[1].rounds]
    found = gradients(records)
    assert found.numbers["regression_to_reval"] == pytest.approx(25)
    assert found.verdict == "reproduced"
    records[1].rounds = records[0].rounds
    assert gradients(records).verdict == "in part", "its accuracy is still worse"


def test_rounds_and_costs_count_until_grpos_best_level() -> None:
    records = [
        *arithmetic("GRPO", [0.8, 0.8, 0.8], learner__updates=1),
        *arithmetic("ReVal", [1.2, 1.2, 1.2], learner__updates=4),  # at GRPO's best level after half the rounds
    ]
    rounds, time = one_rollout.fewer_rounds(records), one_rollout.less_time(records)
    assert rounds.numbers["level"] == pytest.approx(0.8)
    assert rounds.numbers["fewer_rounds"] == pytest.approx(8 / 4)
    assert time.numbers["faster_at_paper_costs"] == pytest.approx(8 * (36.8 + 2.8) / (4 * (36.8 + 4 * 2.8)))
    assert time.numbers["faster_here"] == pytest.approx(2)
    assert (rounds.verdict, time.verdict) == ("reproduced", "reproduced")
    mixed = [*records[:3], *arithmetic("ReVal", [1.2, 1.2, 0.7], learner__updates=4)]
    assert one_rollout.fewer_rounds(mixed).numbers["intervals"]["fewer_rounds"] == pytest.approx([1, 2])
    assert one_rollout.fewer_rounds(mixed).verdict == "undecided", "one of three seeds is not faster"
    assert (
        "“ReVal” 4 (1 of 3 runs never reach it and count with all their rounds)"
        in one_rollout.fewer_rounds(mixed).says
    )


def test_extensions_are_compared_with_the_papers_choice() -> None:
    records = [*arithmetic("paper", [0.8, 0.9]), *arithmetic("ours", [0.85, 0.95])]
    found = beyond.more_accurate_than_the_first(records)
    assert found.numbers["ahead"]["ours"]["value"] == pytest.approx(0.05)
    assert found.verdict == "reproduced"
    assert beyond.more_accurate_than_the_first([*records[2:], *records[:2]]).verdict == "not"
