"""A run in a few figures: what `summary.json` holds and what a terminal shows at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from reval_core.errors import CorruptData
from reval_core.storage.run_directory import RunDirectory, wall_seconds
from reval_core.storage.tables import Manifest


def summarise(directory: RunDirectory) -> dict[str, Any]:
    """The figures of a run whose last round is on record, from its manifests alone.

    Raises Damaged if a manifest that they need is not there.
    """
    by_stage: dict[str, list[Manifest]] = defaultdict(list)
    for manifest in directory.manifests():
        by_stage[manifest.stage].append(manifest)
    last, checkpoints, evaluations = (
        by_stage["recording"][-1:],
        by_stage["checkpoint"],
        by_stage["evaluation"],
    )
    if not last or not checkpoints or not evaluations:
        raise CorruptData(f"{directory.path}: has no finished round to sum up; run it again to go on")
    rounds = last[0].round
    final = checkpoints[-1]
    stage_seconds = {stage: sum(one.seconds for one in found) for stage, found in by_stage.items()}
    stage_seconds["other"] = sum(one.info["other_seconds"] for one in by_stage["recording"])
    return {
        "run": directory.name,
        **_evaluated(evaluations),
        "rounds": rounds,
        "updates": by_stage["learning"][-1].info["updates_done"],
        "trajectories": sum(file.rows for one in by_stage["rollouts"] for file in one.files_of("trajectories")),
        "engine": by_stage["rollouts"][-1].info["engine"],
        "wall_seconds": wall_seconds(directory),
        "stage_seconds": stage_seconds,
        "policy_digest": final.info["content"],
        "policy_chain": final.info["policy"],
        "rounds_from_other_weights": _resumed_from_others(by_stage["learning"]),
    }


def _resumed_from_others(learned: Sequence[Manifest]) -> list[int]:
    """The rounds that learned from other weights than the round before recorded, as a resumed run on a GPU may."""
    return [
        now.round
        for before, now in pairwise(learned)
        if now.info.get("weights_before") != before.info.get("weights")
    ]


def _evaluated(evaluations: Sequence[Manifest]) -> dict[str, Any]:
    """Held-out accuracy; of a run of stored trajectories, the mean |Δ| over all of them. The other is None."""
    accuracies = [one.info.get("accuracy") for one in evaluations]
    residuals = [one.info.get("delta_abs") for one in evaluations]
    measured = [one for one in evaluations if one.info.get("accuracy") is not None]
    best = max(measured, key=lambda one: (one.info["accuracy"], one.round), default=None)
    return {
        "initial_accuracy": accuracies[0],
        "final_accuracy": accuracies[-1],
        "best_accuracy": best and best.info["accuracy"],
        "best_round": best and best.round,
        "initial_delta_abs": residuals[0],
        "final_delta_abs": residuals[-1],
    }


def headline(summary: dict[str, Any]) -> tuple[str, str]:
    """What was measured before and after training, and the two figures."""
    if summary["initial_accuracy"] is not None:
        return "held-out accuracy", f"{summary['initial_accuracy']:.3f} → {summary['final_accuracy']:.3f}"
    if summary["initial_delta_abs"] is not None:
        figures = f"{summary['initial_delta_abs']:.3f} → {summary['final_delta_abs']:.3f}"
        return "mean |Δ| over the stored trajectories", figures
    return "evaluation", "none"


def summary_markdown(summary: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    name, figures = headline(summary)
    shown = {
        name.replace("|", "\\|"): figures,
        "rounds, updates": f"{summary['rounds']}, {summary['updates']}",
        "trajectories": f"{summary['trajectories']:,}",
        "engine": summary["engine"],
        "wall time": f"{summary['wall_seconds']:.0f} s",
        "policy digest": f"`{summary['policy_digest'][:16]}…`",
    }
    rows = [f"| {name} | {value} |" for name, value in shown.items()]
    return "\n".join([f"## {summary['run']}", "", "| | |", "| --- | --- |", *rows])
