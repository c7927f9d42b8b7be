"""The report's first section for a run on stored trajectories: how well the policy fits all of them."""

from __future__ import annotations

from typing import Any

from reval_core.report.charts import Panel, Series, line_chart, rounds_scale, value_scale
from reval_core.report.formats import number, statement
from reval_core.report.sections import Run, Section

_FIT = """
    SELECT round, avg(abs(delta)) AS delta_abs, count(*) AS trajectories
    FROM residuals
    WHERE "update" IS NULL
    GROUP BY round
    ORDER BY round
"""


def fits(run: Run) -> list[dict[str, Any]]:
    """Return mean |Δ| over the stored trajectories, one row per evaluated round, in nats."""
    return [row for row in run.ask(statement(_FIT)) if row["delta_abs"] is not None]


def fit(run: Run) -> Section | None:
    """Plot mean |Δ| over all stored trajectories under the policy after each evaluated round."""
    rows = fits(run)
    if not rows:
        return None
    rounds, means = [row["round"] for row in rows], [row["delta_abs"] for row in rows]
    readings = [(round, f"after round {round}: {number(mean)}") for round, mean in zip(rounds, means, strict=True)]
    plot = line_chart(
        [Series("mean |Δ|", rounds, means, marked=True)],
        rounds_scale(run.last),
        value_scale(means),
        description="Mean |Δ| over the stored trajectories by round",
        readings=readings,
        size="tall",
        resets=run.resets,
    )
    return {"panel": Panel("Mean |Δ| after each round", readings[-1][1], plot), "queries": [statement(_FIT)]}


def fit_in_words(run: Run) -> str:
    """Return the change of the fit in a sentence."""
    rows = fits(run)
    if not rows:
        return "No policy has been evaluated yet."
    first, last = rows[0], rows[-1]
    over = f"over the {first['trajectories']:,} stored trajectories"
    if len(rows) == 1:
        return f"Mean |Δ| {over} is {number(first['delta_abs'])} before training."
    verb = "fell" if last["delta_abs"] < first["delta_abs"] else "went"
    return f"Mean |Δ| {over} {verb} from {number(first['delta_abs'])} to {number(last['delta_abs'])}."
