"""The measurements of each figure's runs."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reval_core.reproduction.measures import accuracy, beyond, one_rollout
from reval_core.reproduction.measures.accuracy import methods, reference_resets, reward_designs, strengths
from reval_core.reproduction.measures.rounds_to_target import best_settings, fewer_rounds, more_updates
from reval_core.reproduction.measures.stability import gradients, no_reward
from reval_core.reproduction.records import Record
from reval_core.reproduction.result import Result
from reval_core.reproduction.study import Figure

_MEASURES: dict[str, Callable[[Sequence[Record]], Result]] = {
    "fig2": more_updates,
    "fig3": fewer_rounds,
    "fig4": methods,
    "fig5": one_rollout.fewer_rounds,
    "fig6": one_rollout.less_time,
    "fig7": reference_resets,
    "fig8": strengths,
    "fig9": reward_designs,
    "fig10": no_reward,
    "fig11": gradients,
    "beyond-best": beyond.all_together,
    "beyond-beta": beyond.more_accurate_than_the_first,
    "beyond-resets": beyond.more_accurate_than_the_first,
    "beyond-sampling": beyond.fewer_rounds_than_the_first,
    "beyond-updates": beyond.fewer_rounds_than_the_first,
    "real-model": beyond.fewer_rounds_than_the_first,
    "search-arithmetic": accuracy.best_settings,
    "search-one-prompt": best_settings,
}


def measure(name: str, figure: Figure, records: Sequence[Record]) -> dict[str, Any]:
    """Return the result of a figure with its claim and its runs, as plain values."""
    result = _MEASURES[name](records)
    return {
        "figure": name,
        "title": figure.title,
        "paper": figure.paper,
        "claim": figure.claim,
        **result.to_json(),
        "seeds": sorted({one.seed for one in records}),
        "runs": [{"arm": one.arm, "prompt": one.level, "seed": one.seed, "path": str(one.path)} for one in records],
        "run_seconds": sum(sum(row["seconds"] for row in one.rounds) for one in records),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _commit() -> str:
    """Return the commit of the code if it is a git checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():  # an installed package may lie inside another project's repository
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
