"""Draw the curves of docs/choosing_settings.md from the demo and from the demo with two other values of β.

reval train configs/demo.yaml --run-dir runs/demo
reval train configs/demo.yaml --run-dir runs/beta3 --set objective.beta=3
reval train configs/demo.yaml --run-dir runs/beta001 --set objective.beta=0.01
python docs/make_curves.py runs/demo runs/beta3 runs/beta001
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes

import reval

pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "reval"}

IMAGES = Path(__file__).with_name("images")

HEALTHY = {
    "accuracy": {"accuracy": "training", "held_out_accuracy": "held-out"},
    "mean |Δ|, nats": {"delta_abs": "fresh responses"},
    "log π/π_ref per response, nats": {"log_ratio": "fresh responses"},
    "entropy, nats per token": {"entropy": "fresh responses"},
}
"""The panels of the healthy run: their titles, and the columns of `rounds` in each with a label."""

STRENGTHS = {
    "accuracy": "training accuracy",
    "residual_left": "ρ, the share of the residual left",
    "log_ratio": "log π/π_ref per response, nats",
}
"""The panels that compare β: the column of `rounds` and the title."""

LABELS = ("β = 0.3", "β = 3", "β = 0.01")


def draw_healthy(run: Path) -> None:
    """Write images/healthy.svg."""
    rounds = reval.open(run).rounds()
    _, panels = pyplot.subplots(1, len(HEALTHY), figsize=(12, 2.8))
    for panel, (title, columns) in zip(panels, HEALTHY.items(), strict=True):
        for column, label in columns.items():
            known = rounds[rounds[column].notna()]
            panel.plot(known["round"], known[column], label=label, marker="." if len(known) < len(rounds) else None)
        _finish(panel, title)
    panels[0].legend(frameon=False)
    _save("healthy.svg")


def draw_strengths(runs: list[Path]) -> None:
    """Write images/betas.svg."""
    _, panels = pyplot.subplots(1, len(STRENGTHS), figsize=(12, 2.8))
    for run, label in zip(runs, LABELS, strict=True):
        rounds = reval.open(run).rounds()
        for panel, column in zip(panels, STRENGTHS, strict=True):
            panel.plot(rounds["round"], rounds[column], label=label)
    for panel, title in zip(panels, STRENGTHS.values(), strict=True):
        _finish(panel, title)
    panels[0].legend(frameon=False)
    _save("betas.svg")


def _finish(panel: Axes, title: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("round")
    panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
    panel.spines[["top", "right"]].set_visible(False)


def _save(name: str) -> None:
    pyplot.tight_layout()
    pyplot.savefig(IMAGES / name, metadata={"Date": None})
    pyplot.close()


if __name__ == "__main__":
    demo, *others = [Path(one) for one in sys.argv[1:]]
    draw_healthy(demo)
    if others:
        draw_strengths([demo, *others])
