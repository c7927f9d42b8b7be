"""Figures 5 and 6: one rollout a prompt. Rounds and seconds until GRPO's best level, and where the seconds go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reval_core.reproduction.finding import Finding, Table, verdict
from reval_core.reproduction.measures.accuracy import accuracy_chart, practised_set
from reval_core.reproduction.records import EVALUATED, ROUNDS, Record, arms, of

PAPER_SECONDS = {"generation": 36.8, "update": 2.8}
"""What a round's generation and an update cost in the paper (§5.4)."""

Spent = dict[str, dict[str, float]]
"""By arm, the medians over its runs of what they spent until they were as good as GRPO ever gets."""


def fewer_rounds(records: Sequence[Record]) -> Finding:
    """Figure 5: generation rounds until GRPO's best level."""
    level, spent = _until_level(records)
    ours = _quickest(spent, "rounds")
    fewer = spent["GRPO"]["rounds"] / spent[ours]["rounds"]
    says = (
        f"GRPO's best level, {100 * level:.1f}%, takes GRPO {spent['GRPO']['rounds']:.0f} rounds, and “{ours}” "
        f"takes {spent[ours]['rounds']:.0f}: {fewer:.1f} times fewer."
    )
    numbers = {"level": level, "until_level": spent, "fewer_rounds": fewer}
    return _finding(records, fewer > 1, says, numbers, spent)


def less_time(records: Sequence[Record]) -> Finding:
    """Figure 6: seconds until GRPO's best level, at our costs and at the paper's."""
    level, spent = _until_level(records)
    ours = _quickest(spent, "paper_seconds")
    faster = spent["GRPO"]["paper_seconds"] / spent[ours]["paper_seconds"]
    here = _seconds(spent["GRPO"]) / _seconds(spent[ours])
    says = (
        f"At the paper's costs ({PAPER_SECONDS['generation']} s a round, {PAPER_SECONDS['update']} s an update) "
        f"“{ours}” reaches GRPO's best level {faster:.1f} times faster. Here, where {_share(spent['GRPO'])} of the "
        f"seconds with GRPO and {_share(spent[ours])} of those with ReVal are generation, it is {here:.2f} times."
    )
    numbers = {"level": level, "until_level": spent, "faster_at_paper_costs": faster, "faster_here": here}
    return _finding(records, faster > 1, says, numbers, spent)


def _finding(
    records: Sequence[Record], holds: bool, says: str, numbers: dict[str, object], spent: Spent
) -> Finding:
    return Finding(verdict(holds), says, numbers, [accuracy_chart(records)], [_table(spent)], [ROUNDS, EVALUATED])


def _until_level(records: Sequence[Record]) -> tuple[float, Spent]:
    """GRPO's best level, the mean over its runs, and what each arm spent until it was there."""
    name = practised_set(records)
    level = float(np.mean([max(one.evaluated[name].values()) for one in of(records, "GRPO")]))
    runs = {arm: [_spent(one, _reached(one, name, level)) for one in of(records, arm)] for arm in arms(records)}
    medians = {
        arm: {key: float(np.median([one[key] for one in found])) for key in found[0]} for arm, found in runs.items()
    }
    return level, medians


def _reached(record: Record, problem_set: str, level: float) -> int:
    """The first evaluated round at the level; of a run that never got there, its last."""
    curve = record.evaluated[problem_set]
    return next((at for at in sorted(curve) if at and curve[at] >= level), max(curve))


def _spent(record: Record, rounds: int) -> dict[str, float]:
    updates = record.spent("updates", rounds)
    return {
        "rounds": float(rounds),
        "updates": updates,
        "generation_seconds": record.spent("generation_seconds", rounds),
        "learning_seconds": record.spent("learning_seconds", rounds),
        "paper_seconds": rounds * PAPER_SECONDS["generation"] + updates * PAPER_SECONDS["update"],
    }


def _quickest(spent: Spent, key: str) -> str:
    return min((arm for arm in spent if arm != "GRPO"), key=lambda arm: spent[arm][key])


def _seconds(found: dict[str, float]) -> float:
    return found["generation_seconds"] + found["learning_seconds"]


def _share(found: dict[str, float]) -> str:
    return f"{100 * found['generation_seconds'] / _seconds(found):.0f}%"


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
    return Table("Until GRPO's best level, the median over seeds", columns, rows)
