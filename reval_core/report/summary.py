"""The summary of a run: the content of `summary.json` and of the final terminal output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from reval_core.errors import CorruptData
from reval_core.storage.run_directory import RunDirectory, wall_seconds
from reval_core.storage.tables import Manifest


def summarise(directory: RunDirectory) -> dict[str, Any]:
    """Return the summary of a run whose last round is recorded, from its manifests alone.

    Raises:
        CorruptData: A required manifest is missing.
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
        raise CorruptData(f"{directory.path}: has no finished round to summarize; run it again to resume")
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
    """Return the rounds that did not start from the previous round's recorded weights (a resumed GPU run)."""
    return [
        now.round
        for before, now in pairwise(learned)
        if now.info.get("weights_before") != before.info.get("weights")
    ]


def _evaluated(evaluations: Sequence[Manifest]) -> dict[str, Any]:
    """Return held-out accuracy, or mean |Δ| for a run on stored trajectories; the other is None."""
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
    """Return the name of the main metric, and its values before and after training."""
    if summary["initial_accuracy"] is not None:
        return "held-out accuracy", f"{summary['initial_accuracy']:.3f} → {summary['final_accuracy']:.3f}"
    if summary["initial_delta_abs"] is not None:
        values = f"{summary['initial_delta_abs']:.3f} → {summary['final_delta_abs']:.3f}"
        return "mean |Δ| over the stored trajectories", values
    return "evaluation", "none"


def summary_markdown(summary: dict[str, Any]) -> str:
    """Return the summary as a Markdown table."""
    name, values = headline(summary)
    shown = {
        name.replace("|", "\\|"): values,
        "rounds, updates": f"{summary['rounds']}, {summary['updates']}",
        "trajectories": f"{summary['trajectories']:,}",
        "engine": summary["engine"],
        "wall time": f"{summary['wall_seconds']:.0f} s",
        "policy digest": f"`{summary['policy_digest'][:16]}…`",
    }
    rows = [f"| {name} | {value} |" for name, value in shown.items()]
    return "\n".join([f"## {summary['run']}", "", "| | |", "| --- | --- |", *rows])
