"""Figures 5 and 6: one rollout a prompt. Rounds and seconds until GRPO's best level, and where the seconds go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reval_core.reproduction.finding import Finding, Table, verdict
from reval_core.reproduction.measures.accuracy import accuracy_chart, practised_set
from reval_core.reproduction.records import EVALUATED, ROUNDS, Record, arms, of

PAPER_SECONDS = {"generation": 36.8, "update": 2.8}
"""What a round's generation and an update cost in the paper (§5.4)."""


def to_the_best_level(records: Sequence[Record]) -> Finding:
    """Figures 5 and 6: what each arm spends until it is as good as GRPO ever gets."""
    name = practised_set(records)
    best = float(np.mean([max(one.evaluated[name].values()) for one in of(records, "GRPO")]))
    spent = {arm: [_spent(one, _reached(one, name, best)) for one in of(records, arm)] for arm in arms(records)}
    middle = {
        arm: {key: float(np.median([one[key] for one in found])) for key in found[0]}
        for arm, found in spent.items()
    }
    ours = min((arm for arm in middle if arm != "GRPO"), key=lambda arm: middle[arm]["rounds"])
    fewer = middle["GRPO"]["rounds"] / middle[ours]["rounds"]
    faster = middle["GRPO"]["paper_seconds"] / middle[ours]["paper_seconds"]
    says = (
        f"GRPO's best level is {100 * best:.1f}%. It takes {middle['GRPO']['rounds']:.0f} rounds to get there, "
        f"{ours} {middle[ours]['rounds']:.0f} ({fewer:.1f} times fewer). At the paper's costs of a round and an "
        f"update that is {faster:.1f} times faster, at ours {_share(middle['GRPO'])} of GRPO's seconds and "
        f"{_share(middle[ours])} of ReVal's are generation."
    )
    numbers = {"level": best, "until_level": middle, "fewer_rounds": fewer, "faster_at_paper_costs": faster}
    rows = [
        [
            arm,
            f"{found['rounds']:.0f}",
            f"{found['updates']:.0f}",
            f"{found['generation_seconds']:.1f}",
            f"{found['learning_seconds']:.1f}",
            f"{found['paper_seconds'] / 60:.0f} min",
        ]
        for arm, found in middle.items()
    ]
    columns = ["", "rounds", "updates", "s generating", "s learning", "at the paper's costs"]
    table = Table("Until GRPO's best level, the median over seeds", columns, rows)
    return Finding(
        verdict(fewer > 1, faster > 1), says, numbers, [accuracy_chart(records)], [table], [ROUNDS, EVALUATED]
    )


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


def _seconds(found: dict[str, float]) -> float:
    return found["generation_seconds"] + found["learning_seconds"]


def _share(found: dict[str, float]) -> str:
    return f"{100 * found['generation_seconds'] / _seconds(found):.0f}%"
