"""The report's section on how far off policy the trajectories drawn for updates were."""

from __future__ import annotations

from typing import Any

from reval_core.report.charts import Band, Panel, Series, line_chart, rounds_scale, value_scale
from reval_core.report.formats import number, statement
from reval_core.report.sections import Curve, Run, Section, curve_panel

_BY_ROUND = """
    SELECT round, off_policy_q05 AS q05, off_policy_q25 AS q25, off_policy_q50 AS q50, off_policy_q75 AS q75,
           off_policy_q95 AS q95, off_policy_ess AS ess
    FROM rounds
    WHERE off_policy_q50 IS NOT NULL
    ORDER BY round
"""

# An objective without a residual records zeros here, and no mean in `rounds`.
_BY_AGE = """
    SELECT
        o.age, sum(o.draws)::BIGINT AS draws,
        avg(o.delta_abs) FILTER (r.drawn_delta_abs IS NOT NULL) AS delta_abs,
        avg(o.q05) AS q05, avg(o.q50) AS q50, avg(o.q95) AS q95, avg(o.ess) AS ess
    FROM off_policy o
    JOIN rounds r USING (round)
    WHERE o.round > (SELECT max(round) FROM rounds) - 10
    GROUP BY o.age
    ORDER BY o.age
"""


def off_policy(run: Run) -> Section | None:
    """Plot quantiles of log π(τ)/π_writer(τ) and effective sample size per round; return both and |Δ| by age."""
    rows = run.ask(statement(_BY_ROUND))
    if not rows:
        return None
    effective = Curve("ess", "Effective sample size", "of draws", "100% is on policy.", percent=True)
    return {
        "panels": [_ratios(run, rows), curve_panel(run, effective, rows)],
        "ages": run.ask(statement(_BY_AGE)),
        "queries": [statement(_BY_ROUND), statement(_BY_AGE)],
    }


def _ratios(run: Run, rows: list[dict[str, Any]]) -> Panel:
    rounds = [row["round"] for row in rows]
    of = {name: [row[name] for row in rows] for name in ("q05", "q25", "q50", "q75", "q95")}
    plot = line_chart(
        [Series("median", rounds, of["q50"])],
        rounds_scale(run.last, ticks=4),
        value_scale([value for values in of.values() for value in values]),
        description="Log-ratio to the writer by round: median, 25% to 75%, 5% to 95%",
        readings=[(row["round"], f"round {row['round']}: {_spread(row)}") for row in rows],
        resets=run.resets,
        bands=[Band(rounds, of["q05"], of["q95"]), Band(rounds, of["q25"], of["q75"])],
    )
    about = "Above 0 the policy finds a trajectory likelier than its writer did."
    return Panel("Log-ratio to the writer", number(of["q50"][-1]), plot, "nats; median, 25–75%, 5–95%", about)


def _spread(row: dict[str, Any]) -> str:
    return f"{number(row['q50'])} ({number(row['q05'])} to {number(row['q95'])})"
