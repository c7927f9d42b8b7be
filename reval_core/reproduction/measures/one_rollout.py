"""Figures 5 and 6: one rollout per prompt. Rounds and seconds until GRPO's best level, and their breakdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reval_core.reproduction.measures.accuracy import accuracy_chart, trained_set
from reval_core.reproduction.measures.rounds_to_target import times
from reval_core.reproduction.records import EVALUATED, ROUNDS, Record, arms, of
from reval_core.reproduction.result import Result, Table, verdict
from reval_core.reproduction.statistics import Estimate, speed_up

PAPER_SECONDS = {"generation": 36.8, "update": 2.8}
"""Seconds per generation round and per update in the paper (§5.4)."""

_ROUNDING = 1e-9
"""Tolerance for comparing a run with the mean over runs."""

Runs = dict[str, list[dict[str, float]]]
"""Maps an arm to the cost of each run until GRPO's best level."""
Spent = dict[str, dict[str, float]]
"""Maps an arm to the medians over its runs."""


def fewer_rounds(records: Sequence[Record]) -> Result:
    """Figure 5: generation rounds until GRPO's best level."""
    level, runs = _until_level(records)
    spent = _medians(runs)
    ours = _fastest(spent, "rounds")
    fewer = _ratio(runs, ours, "rounds")
    says = (
        f"GRPO's best level, {100 * level:.1f}% (the mean over its runs), takes GRPO {spent['GRPO']['rounds']:.0f} "
        f"rounds{_never(runs['GRPO'])} and “{ours}” {spent[ours]['rounds']:.0f}{_never(runs[ours])}: a ratio of "
        f"{times(fewer)}."
    )
    numbers = {
        "level": level,
        "until_level": spent,
        "fewer_rounds": fewer.value,
        "intervals": {"fewer_rounds": fewer.interval},
    }
    return _result(records, fewer.above(1), says, numbers, spent)


def less_time(records: Sequence[Record]) -> Result:
    """Figure 6: seconds until GRPO's best level, at our costs and at the paper's."""
    level, runs = _until_level(records)
    spent = _medians(runs)
    ours = _fastest(spent, "paper_seconds")
    faster, here = _ratio(runs, ours, "paper_seconds"), _ratio(runs, ours, "seconds")
    says = (
        f"At the paper's costs ({PAPER_SECONDS['generation']} s per round, {PAPER_SECONDS['update']} s per update) "
        f"“{ours}” reaches GRPO's best level with a speed-up of {times(faster)}. Here, where generation takes "
        f"{_share(spent['GRPO'])} of the time with GRPO and {_share(spent[ours])} with ReVal, it is {times(here)}."
    )
    numbers = {
        "level": level,
        "until_level": spent,
        "faster_at_paper_costs": faster.value,
        "faster_here": here.value,
        "intervals": {"faster_at_paper_costs": faster.interval, "faster_here": here.interval},
    }
    return _result(records, faster.above(1), says, numbers, spent)


def _result(
    records: Sequence[Record], holds: bool | None, says: str, numbers: dict[str, object], spent: Spent
) -> Result:
    return Result(verdict(holds), says, numbers, [accuracy_chart(records)], [_table(spent)], [ROUNDS, EVALUATED])


def _until_level(records: Sequence[Record]) -> tuple[float, Runs]:
    """Return GRPO's best level (the mean over its runs), and the cost of each run until it reached that level."""
    name = trained_set(records)
    level = float(np.mean([max(one.evaluated[name].values()) for one in of(records, "GRPO")]))
    runs = {arm: [_spent(one, name, level) for one in of(records, arm)] for arm in arms(records)}
    return level, runs


def _medians(runs: Runs) -> Spent:
    return {
        arm: {key: float(np.median([one[key] for one in found])) for key in found[0]} for arm, found in runs.items()
    }


def _ratio(runs: Runs, arm: str, key: str) -> Estimate:
    """Return the ratio of GRPO's cost to that of an arm."""
    baseline, ours = ([one[key] for one in runs[name]] for name in ("GRPO", arm))
    return speed_up({"": baseline}, {"": ours}, max(baseline))


def _spent(record: Record, problem_set: str, level: float) -> dict[str, float]:
    """Return the cost of a run until its first evaluated round at the level, or its total cost if it never is."""
    curve = record.evaluated[problem_set]
    reached = next((at for at in sorted(curve) if at and curve[at] > level - _ROUNDING), None)
    rounds = reached or max(curve)
    updates = record.spent("updates", rounds)
    generation, learning = (record.spent(f"{part}_seconds", rounds) for part in ("generation", "learning"))
    return {
        "rounds": float(rounds),
        "never_there": float(reached is None),
        "updates": updates,
        "generation_seconds": generation,
        "learning_seconds": learning,
        "seconds": generation + learning,
        "paper_seconds": rounds * PAPER_SECONDS["generation"] + updates * PAPER_SECONDS["update"],
    }


def _never(found: list[dict[str, float]]) -> str:
    count = sum(one["never_there"] for one in found)
    return f" ({count:.0f} of {len(found)} runs never reach it and count with all their rounds)" if count else ""


def _fastest(spent: Spent, key: str) -> str:
    return min((arm for arm in spent if arm != "GRPO"), key=lambda arm: spent[arm][key])


def _share(found: dict[str, float]) -> str:
    return f"{100 * found['generation_seconds'] / found['seconds']:.0f}%"


def _table(spent: Spent) -> Table:
    rows = [
        [
            arm,
            f"{found['rounds']:.0f}",
            f"{found['updates']:.0f}",
            f"{found['generation_seconds']:.1f}",
            f"{found['learning_seconds']:.1f}",
            f"{found['paper_seconds'] / 60:.0f} min",
        ]
        for arm, found in spent.items()
    ]
    columns = ["", "rounds", "updates", "s generating", "s learning", "at the paper's costs"]
    return Table("Until GRPO's best level, median over seeds", columns, rows)
