"""The report's section on how far off policy the trajectories drawn for updates were."""

from __future__ import annotations

from typing import Any

from reval_core.report.charts import Band, Series, line_chart, rounds_scale, value_scale
from reval_core.report.page import Html, join, number, percent, section, sql_note, statement, tag
from reval_core.report.sections import Curve, Run, about_resets, curve_figure

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


def off_policy(run: Run) -> Html:
    """Render quantiles of log π(τ)/π_writer(τ) and effective sample size per round, and |Δ| by age."""
    rows, title = run.ask(statement(_BY_ROUND)), "Off-policyness of the draws"
    if not rows:
        return section(title, "There are no recorded draws with log-probs of the policy that wrote them.")
    writer = tag("sub", "writer")
    lead = join(
        [
            "For each drawn trajectory, log\u00a0π(τ)/π",
            writer,
            "(τ) just before its update; 0 is on policy. The effective sample size is the share of draws that "
            "remains under importance weights π(τ)/π",
            writer,
            "(τ).",
            about_resets(run),
        ]
    )
    effective = curve_figure(run, Curve("ess", "Effective sample size", "of draws", percent=True), rows)
    plots = tag("div", _ratios(run, rows), effective, class_="grid")
    by_age = run.ask(statement(_BY_AGE))
    return section(title, lead, plots, _ages(by_age), sql_note(statement(_BY_ROUND), statement(_BY_AGE)))


def _ratios(run: Run, rows: list[dict[str, Any]]) -> Html:
    rounds = [row["round"] for row in rows]
    of = {name: [row[name] for row in rows] for name in ("q05", "q25", "q50", "q75", "q95")}
    chart = line_chart(
        [Series("median", rounds, of["q50"])],
        rounds_scale(run.last, ticks=4),
        value_scale([value for values in of.values() for value in values]),
        description="Log-ratio to the writer by round: median, 25% to 75%, 5% to 95%",
        readings=[(row["round"], f"round {row['round']}: {_spread(row)}") for row in rows],
        resets=run.resets,
        bands=[Band(rounds, of["q05"], of["q95"]), Band(rounds, of["q25"], of["q75"])],
    )
    unit = tag("span", "nats; median, 25–75%, 5–95%", class_="unit")
    name = tag("span", tag("b", "Log-ratio to the writer"), " ", unit)
    return tag("figure", tag("figcaption", name, tag("output", number(of["q50"][-1]))), chart)


def _spread(row: dict[str, Any]) -> str:
    return f"{number(row['q50'])} ({number(row['q05'])} to {number(row['q95'])})"


def _ages(rows: list[dict[str, Any]]) -> Html:
    """Render a row per group of ages, with |Δ| as a bar where it is defined."""
    longest = max((row["delta_abs"] or 0.0 for row in rows), default=0.0) or 1.0
    names = ("age in rounds", "draws", "mean |Δ|", "", "log-ratio to the writer", "effective share")
    head = tag("tr", *(tag("th", name) for name in names))
    lines = [
        tag(
            "tr",
            tag("td", _ages_in_words(row["age"])),
            tag("td", f"{row['draws']:,}"),
            tag("td", number(row["delta_abs"])),
            tag("td", tag("i", class_="share rollouts", style=f"width:{_width(row, longest)}"), class_="wide"),
            tag("td", _spread(row)),
            tag("td", percent(row["ess"])),
        )
        for row in rows
    ]
    note = tag("p", "By age of the trajectory: means over the last 10 rounds.", class_="note")
    return tag("div", note, tag("table", head, *lines))


def _ages_in_words(age: int) -> str:
    """Return the group of an age: those up to the next power of two."""
    return f"{age}" if age < 2 else f"{age} to {2 * age - 1}"


def _width(row: dict[str, Any], longest: float) -> str:
    return f"{100 * (row['delta_abs'] or 0.0) / longest:.1f}%"
