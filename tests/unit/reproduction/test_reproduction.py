"""The small-scale reproduction: plans, values computed from runs, and verdicts."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reval.flows.cli.reproduce import all_figures, reproduce_here
from reval.flows.reproduction_runs import finish_run, is_finished
from reval_core.config import Config
from reval_core.errors import InputError
from reval_core.reproduction.measures import _MEASURES, beyond
from reval_core.reproduction.measures.rounds_to_target import CHOSEN, best_settings, fewer_rounds, more_updates
from reval_core.reproduction.measures.stability import no_reward
from reval_core.reproduction.prompt_search import MeasuredProblem, nearest
from reval_core.reproduction.records import Record
from reval_core.reproduction.result import in_words, verdict
from reval_core.reproduction.statistics import difference, mean_over_seeds, speed_up, typical
from reval_core.reproduction.study import known_figures, load_figure, load_search, units
from reval_core.storage.run_directory import RunDirectory
from tests.runs import small_config

ROOT = Path(__file__).parents[3]


class Made(Record):
    """A record with given rounds and evaluations."""

    def __init__(
        self,
        arm: str,
        level: str | None,
        seed: int,
        config: Config,
        rounds: list[dict[str, Any]],
        evaluated: dict[str, dict[int, float]] | None = None,
    ) -> None:
        self.arm, self.level, self.seed, self.config = arm, level, seed, config
        self.path = Path("none")
        self.rounds = rounds
        self.evaluated = evaluated or {}


def one_prompt(arm: str, level: str, seed: int, rounds: int | None, **changes: Any) -> Made:
    """Return a run that reaches 95% in `rounds` rounds, of at most 120; None never reaches it."""
    config = small_config(rounds=120, evaluation__target=0.95, **changes)
    rows = [
        {
            "round": number,
            "accuracy": number / (rounds or 121),
            "held_out_accuracy": 0.96 if number == rounds else 0.5 if number == 120 else None,
            "updates": config.learner.updates,
            "tokens": 100,
            "generation_seconds": 0.5,
            "learning_seconds": 1.0,
            "seconds": 1.5,
        }
        for number in range(1, (rounds or 120) + 1)
    ]
    return Made(arm, level, seed, config, rows)


def study(counts: dict[str, tuple[dict[str, Any], dict[str, list[int | None]]]]) -> list[Made]:
    return [
        one_prompt(arm, level, seed, rounds, **changes)
        for arm, (changes, by_level) in counts.items()
        for level, found in by_level.items()
        for seed, rounds in enumerate(found)
    ]


GRPO = {"objective": {"kind": "grpo"}, "replay__capacity": 64, "learner__updates": 1}
QUICK, SLOW = {"learner__lr": 3e-4}, {"learner__lr": 1e-4}
COUNTS: dict[str, tuple[dict[str, Any], dict[str, list[int | None]]]] = {
    "GRPO": ({**GRPO, **QUICK}, {"hard": [12, 18, 15], "easy": [16, 17, 23]}),
    "slow GRPO": ({**GRPO, **SLOW}, {"hard": [44, 59, 30], "easy": [65, 45, None]}),
    "K8": ({"learner__updates": 8, **QUICK}, {"hard": [5, 4, 7], "easy": [4, 4, 4]}),
    "slow K8": ({"learner__updates": 8, **SLOW}, {"hard": [10, 19, 8], "easy": [8, 8, 8]}),
    "GRPO best": ({**GRPO, **QUICK}, {"hard": [9, 9, 9], "easy": [8, 7, 8]}),
    "GRPO second": ({**GRPO, **QUICK}, {"hard": [16, 16, 16], "easy": [16, 16, 16]}),
    "ReVal best": ({"learner__updates": 32, **QUICK}, {"hard": [2, 2, 2], "easy": [2, 2, 2]}),
}


@pytest.mark.parametrize("name", known_figures())
def test_every_figure_has_runs(name: str, tmp_path: Path) -> None:
    figure = load_figure(name)
    planned = units(figure, tmp_path)
    assert len({unit.path for unit in planned}) == len(planned)
    assert {unit.arm for unit in planned} == set(figure.arms)
    assert len({unit.seed for unit in planned}) == figure.seeds
    assert all(unit.config.threads == 1 for unit in planned), "two runs at a time share two cores"
    assert len(units(figure, tmp_path, seeds=1)) == len(planned) // figure.seeds


def test_every_figure_has_a_measure() -> None:
    assert set(_MEASURES) == set(known_figures())


def test_units_share_a_directory_only_with_equal_settings(tmp_path: Path) -> None:
    known: dict[Path, Any] = {}
    for name in known_figures():
        for unit in units(load_figure(name), tmp_path):
            settings = unit.config.model_dump(mode="json")
            assert known.setdefault(unit.path, settings) == settings
    shared = {unit.path for unit in units(load_figure("fig2"), tmp_path)}
    assert shared & {unit.path for unit in units(load_figure("fig3"), tmp_path)}, "figures 2 and 3 share runs"


def test_searches_use_other_seeds_than_the_figures_that_use_them(tmp_path: Path) -> None:
    searched = {unit.seed for unit in units(load_figure("search-one-prompt"), tmp_path)}
    assert not searched & {unit.seed for unit in units(load_figure("fig3"), tmp_path, seeds=50)}


def test_an_unknown_figure_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown figure 'fig33'; choose from fig2, fig3"):
        load_figure("fig33")


def test_all_leaves_out_searches_and_absent_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = all_figures()
    left_out = set(known_figures()) - set(made)
    assert {name for name in left_out if not name.startswith("search-")} == {"real-model"}
    assert "real-model is skipped: models/smollm2-135m-instruct does not exist" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"real-model: .* does not exist; `make smollm2` creates it"):
        reproduce_here(["real-model"], None, tmp_path / "out", None, as_json=False)
    (tmp_path / "models/smollm2-135m-instruct").mkdir(parents=True)
    assert "real-model" in all_figures()


def test_the_prompt_levels_are_those_of_the_paper() -> None:
    assert load_search("arithmetic").levels == {"hard": 0.10, "medium": 0.40, "easy": 0.68}


def test_a_run_of_an_earlier_config_is_neither_reused_nor_resumed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    made, edited = small_config(), small_config(learner__lr=0.5)
    directory.open(made)
    settings = edited.model_dump(mode="json")
    assert not is_finished(settings, str(directory.path))
    with pytest.raises(InputError, match=r"run: contains a run of an earlier config; .*learner.lr"):
        finish_run(settings, str(directory.path))


def test_the_nearest_prompts_are_candidates() -> None:
    known = [
        MeasuredProblem(name, name, "1", rate, 32)
        for name, rate in (("a", 0.5), ("b", 0.1), ("c", 0.45), ("d", 0.3))
    ]
    assert [one.prompt_id for one in nearest(known, 0.4, 2)] == ["c", "a"]


def test_typical_is_the_geometric_mean_over_prompts_of_medians_over_seeds() -> None:
    assert typical({"hard": [12, 18, 15], "easy": [60, 16, 21]}, 120) == pytest.approx((15 * 21) ** 0.5)


def test_a_run_that_misses_the_target_counts_as_the_limit() -> None:
    assert typical({"hard": [20, None, None]}, 120) == pytest.approx(120)
    assert typical({"hard": [20, 30, None]}, 120) == pytest.approx(30)


def test_a_speed_up_has_an_interval_around_it() -> None:
    baseline = {"hard": [12, 18, 15], "easy": [16, 17, 23]}
    found = speed_up(baseline, {"hard": [5, 4, 7], "easy": [4, 4, 4]}, 120)
    assert found.value == pytest.approx((15 * 17) ** 0.5 / (5 * 4) ** 0.5)
    assert found.low < found.value < found.high
    assert speed_up(baseline, baseline, 120).value == pytest.approx(1)
    assert speed_up(baseline, baseline, 120).low < 1, "the two sides are resampled independently"


def test_means_and_differences_come_with_intervals_over_seeds() -> None:
    values = [0.5, 0.6, 0.7]
    found = mean_over_seeds(values)
    assert found.value == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx(
        (0.6 - 4.303 * 0.1 / 3**0.5, 0.6 + 4.303 * 0.1 / 3**0.5), abs=1e-3
    )
    ahead = difference(values, [0.4, 0.5, 0.6])
    assert (ahead.value, ahead.low, ahead.high) == pytest.approx((0.1, 0.1, 0.1)), "seeds are paired"


def test_one_seed_has_no_interval() -> None:
    for found in (speed_up({"hard": [12]}, {"hard": [6]}, 120), mean_over_seeds([2.0])):
        assert found.interval is None
        assert (found.above(1), found.above(2)) == (None, False)
        assert found.to_json() == {"value": 2.0, "low": None, "high": None}
        assert found.text(".1f") == "2.0 (too few seeds for an interval)"
    assert mean_over_seeds([2.0, 2.0]).text(".1f") == "2.0 (2.0 to 2.0)"
    assert speed_up({"hard": [12, 13]}, {"hard": [6, 7]}, 120).interval is None, "two seeds are too few to resample"


def test_intervals_of_means_cover_the_mean_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    found = [mean_over_seeds(draw.tolist()) for draw in rng.normal(0.5, 0.1, size=(2000, 3))]
    assert 0.93 < np.mean([one.low <= 0.5 <= one.high for one in found]) < 0.97


def test_speed_ups_of_equal_sides_cover_1_95_times_in_100() -> None:
    rng = np.random.default_rng(0)

    def side() -> dict[str, list[float]]:
        return {level: rng.lognormal(2, 0.4, size=3).tolist() for level in ("hard", "medium", "easy")}

    found = [speed_up(side(), side(), 1000) for _ in range(200)]
    assert np.mean([one.low <= 1 <= one.high for one in found]) > 0.92


def test_fewer_rounds_compares_equal_rates_and_best_settings() -> None:
    found = fewer_rounds(study(COUNTS))
    quick, slow = (15 * 17) ** 0.5 / (5 * 4) ** 0.5, (44 * 65) ** 0.5 / (10 * 8) ** 0.5
    by_rate = found.numbers["same_rate_by_rate"]
    assert by_rate["0.0003"]["value"] == pytest.approx(quick)
    assert by_rate["0.0001"]["value"] == pytest.approx(slow)
    assert found.numbers["same_rate"] == pytest.approx((quick * slow) ** 0.5)
    assert found.numbers["best"] == pytest.approx((9 * 8) ** 0.5 / 2)
    assert found.numbers["best_is_against"] == "GRPO best"
    equal = found.numbers["same_rate_and_updates"]
    assert equal == {}, "no GRPO arm has as many updates"
    assert found.numbers["never_there"]["slow GRPO"] == 1
    assert found.numbers["costs"]["K8"]["updates"] == 8 * np.median([5, 4, 7, 4, 4, 4])
    assert found.verdict == "reproduced"


def test_grpo_with_as_many_updates_is_also_reported() -> None:
    alike = {"GRPO, K = 8": ({**GRPO, **QUICK, "learner__updates": 8}, COUNTS["GRPO second"][1])}
    found = fewer_rounds(study(COUNTS | alike))
    assert found.numbers["same_rate"] == fewer_rounds(study(COUNTS)).numbers["same_rate"], (
        "the main comparison has one update"
    )
    assert found.numbers["same_rate_and_updates"]["0.0003"]["value"] == pytest.approx(16 / (5 * 4) ** 0.5)
    assert "With 8 updates as well, at 0.0003, GRPO takes 3.6×" in found.says


def test_seconds_are_those_of_generation_and_learning() -> None:
    found = fewer_rounds(study(COUNTS)).numbers["costs"]["ReVal best"]
    assert found["seconds"] == found["generation_seconds"] + found["learning_seconds"] == 2 * 1.5


def test_the_best_is_compared_with_the_better_grpo_and_the_best_extension_is_named() -> None:
    extension = {"4 to 32 updates": ({"learner__updates": 32, **QUICK}, {"hard": [3, 3, 3], "easy": [3, 3, 3]})}
    found = beyond.all_together(study({arm: COUNTS[arm] for arm in CHOSEN} | extension))
    assert found.numbers["best_arm"] == "ReVal best"
    assert found.numbers["best_is_against"] == "GRPO best"
    assert found.numbers["best"] == pytest.approx((9 * 8) ** 0.5 / 2)
    assert "The fastest extension is “4 to 32 updates”, 2.8×" in found.says
    assert found.verdict == "not", "4.2 is neither 6 nor the paper's 4.3"
    slow = {**COUNTS, "GRPO best": (COUNTS["GRPO best"][0], {"hard": [13] * 3, "easy": [13] * 3})}
    assert beyond.all_together(study({arm: slow[arm] for arm in CHOSEN} | extension)).verdict == "reproduced"


def test_an_arm_is_faster_than_the_first_only_if_the_interval_excludes_1() -> None:
    slow = ({}, {"hard": [20, 22, 24], "easy": [20, 22, 24]})
    quick = ({}, {"hard": [10, 11, 12], "easy": [10, 11, 12]})
    found = beyond.fewer_rounds_than_the_first(study({"uniform": slow, "by age": quick}))
    assert found.numbers["speed_up"]["by age"]["value"] == pytest.approx(2)
    assert found.verdict == "reproduced"
    assert beyond.fewer_rounds_than_the_first(study({"uniform": quick, "by age": slow})).verdict == "not"
    assert mean_over_seeds([1.0, 2.0, 3.0]).above(0) is None, "the interval includes 0"
    assert mean_over_seeds([2.0, 2.1, 2.2]).above(0) is True
    one = ({}, {"hard": [10], "easy": [10]})
    assert beyond.fewer_rounds_than_the_first(study({"uniform": slow, "by age": one})).verdict == "undecided"


def test_a_ratio_below_the_papers_is_reproduced_in_part() -> None:
    late = {**COUNTS, "ReVal best": (COUNTS["ReVal best"][0], {"hard": [3], "easy": [2]})}
    assert fewer_rounds(study(late)).verdict == "in part"


def test_if_grpos_fastest_setting_collapses_reval_is_compared_with_its_second() -> None:
    collapsed = {**COUNTS, "GRPO best": (COUNTS["GRPO"][0], {"hard": [2, None, None], "easy": [9, 9, 9]})}
    found = fewer_rounds(study(collapsed))
    assert found.numbers["best_is_against"] == "GRPO second"
    assert found.numbers["best"] == pytest.approx(16 / 2)


def test_the_search_chooses_by_medians_over_seeds_and_prompts() -> None:
    arms = {
        "one lucky seed": ({**GRPO, "learner__updates": 8}, {"hard": [1, None, None], "easy": [1, None, None]}),
        "quick": ({**GRPO, "learner__updates": 4}, {"hard": [6, 7, 8], "easy": [6, 7, None]}),
        "steady": (GRPO, {"hard": [20, 20, 20], "easy": [20, 20, 20]}),
        "K8": COUNTS["K8"],
        "slow K8": COUNTS["slow K8"],
    }
    found = best_settings(study(arms))
    assert found.numbers["best_arms"] == {"GRPO best": "quick", "GRPO second": "steady", "ReVal best": "K8"}


def test_more_updates_must_mean_fewer_rounds_each_time() -> None:
    arms = {"GRPO": COUNTS["GRPO"]} | {
        f"K{k}": ({"learner__updates": k}, {"hard": [rounds], "easy": [rounds]})
        for k, rounds in ((1, 20), (2, 12), (4, 8), (8, 5))
    }
    assert more_updates(study(arms)).verdict == "reproduced"
    assert more_updates(study({**arms, "K4": (arms["K4"][0], {"hard": [13], "easy": [13]})})).verdict == "in part"


@pytest.mark.parametrize(
    ("tbrm", "reval", "said"),
    [(0.5, 0.0, "reproduced"), (0.5, 0.2, "in part"), (1e-3, 0.0, "in part"), (0.0, 0.2, "not")],
)
def test_without_reward_only_one_of_the_two_may_move(tbrm: float, reval: float, said: str) -> None:
    config = small_config()
    records = [
        Made(arm, "medium", seed, config, [{"round": n, "kl": kl} for n in range(1, 61)])
        for arm, kl in (("TBRM", tbrm), ("ReVal", reval))
        for seed in range(3)
    ]
    found = no_reward(records)
    assert found.verdict == said
    assert (found.numbers["tbrm_kl"], found.numbers["reval_kl"]) == pytest.approx((tbrm, reval))


def test_extensions_hold_or_do_not_hold() -> None:
    assert [in_words(said, "Figure 3") for said in ("reproduced", "in part", "not")] == [
        "reproduced",
        "in part",
        "not reproduced",
    ]
    assert [in_words(said, "") for said in ("reproduced", "in part", "not", "searched")] == [
        "holds",
        "in part",
        "does not hold",
        "searched",
    ]


def test_a_verdict_is_in_part_if_only_some_parts_hold() -> None:
    assert [verdict(True, True), verdict(True, False), verdict(False, False)] == ["reproduced", "in part", "not"]
    assert [verdict(None, True), verdict(None, False), verdict(None)] == ["in part", "undecided", "undecided"]


def test_merging_replaces_only_the_figures_with_new_results() -> None:
    merged = runpy.run_path(str(ROOT / "docs/make_reproduction.py"))["merged"]

    def results(**said: str) -> str:
        rows = "\n".join(f"| [{name}](#{name}) | a title | {one} |" for name, one in said.items())
        sections = "\n\n".join(f"### {name}\n\n*{one}*\n\nIts runs." for name, one in said.items())
        return f"| figure | what it shows | verdict |\n| --- | --- | --- |\n{rows}\n\n{sections}\n"

    recorded = results(fig2="holds", fig3="holds", fig4="holds")
    assert merged(recorded, results(fig3="does not")) == results(fig2="holds", fig3="does not", fig4="holds")
    assert merged(recorded, recorded) == recorded
