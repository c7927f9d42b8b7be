"""The values of the report's sections: accuracy, training curves, time per stage, and the hardest prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reval_core.config.loader import load_config
from reval_core.evaluation.intervals import Interval, macro
from reval_core.report.charts import Panel, Series, line_chart, rounds_scale, stacked_chart, value_scale
from reval_core.report.formats import duration, number, percent, statement
from reval_core.storage.run_directory import RunDirectory, wall_seconds
from reval_core.storage.tables import Manifest

Ask = Callable[[str], list[dict[str, Any]]]
"""Executes SQL and returns one dict per row."""

Section = dict[str, Any]
"""The variables of a section in the template; `queries` are those behind it."""

STAGES = ("rollouts", "verification", "consistency", "sampling", "learning", "evaluation", "other")
"""The stages that the time of a round is divided into; the table `rounds` has a column of seconds for each."""

SEED = 0
"""Seed of the intervals, so that a report can be repeated."""

MOST_BARS = 130
"""Maximum number of bars; with more rounds, each bar covers several."""

# The trajectories of round t come from the policy after round t − 1.
_TRAINING = """
    SELECT round - 1 AS policy_round, accuracy
    FROM rounds
    WHERE accuracy IS NOT NULL
    ORDER BY round
"""

# Problem sets have equal weight, whatever their size. `shares` has a list per set, for the interval.
HELD_OUT = """
    WITH problems AS (
        SELECT round, problem_set, prompt_id, avg(correct::INTEGER) AS share
        FROM evaluations
        GROUP BY ALL
    ),
    sets AS (
        SELECT round, avg(share) AS share, list(share ORDER BY prompt_id) AS shares, count(*) AS problems
        FROM problems
        GROUP BY round, problem_set
        ORDER BY problem_set
    )
    SELECT round, avg(share) AS accuracy, list(shares) AS shares, sum(problems)::BIGINT AS problems
    FROM sets
    GROUP BY round
    ORDER BY round
"""

GAIN = """
    WITH problems AS (
        SELECT round, problem_set, prompt_id, avg(correct::INTEGER) AS share
        FROM evaluations
        GROUP BY ALL
    ),
    sets AS (
        SELECT problem_set, list(after.share - before.share ORDER BY prompt_id) AS gains
        FROM problems AS before
        JOIN problems AS after USING (problem_set, prompt_id)
        WHERE before.round = (SELECT min(round) FROM evaluations)
          AND after.round = (SELECT max(round) FROM evaluations)
        GROUP BY problem_set
        ORDER BY problem_set
    )
    SELECT list_avg(list(list_avg(gains))) AS gain, list(gains) AS gains
    FROM sets
"""

_CURVES = """
    SELECT round, delta_abs, drawn_delta_abs, residual_left, coalesce(log_ratio, kl) AS log_ratio, kl_k3, entropy,
           response_length, truncated, grad_norm, grad_clipped, staleness, effective_sample_size, engine_gap,
           engine_lag
    FROM rounds
    ORDER BY round
"""

_BARS = """
    SELECT min(round) AS first, max(round) AS last,
        {means}
    FROM rounds
    GROUP BY (round - 1) // {width}
    ORDER BY first
"""

_TOTALS = """
    SELECT
        {sums}
    FROM rounds
"""

_HARDEST = """
    WITH prompts AS (
        SELECT
            t.prompt_id,
            count(*) AS attempts,
            count(*) FILTER (v.correct) AS solved,
            count(*) FILTER (v.verdict = 'truncated') AS cut_off,
            max(t.trajectory_id) AS latest
        FROM trajectories t
        JOIN verdicts v USING (trajectory_id)
        GROUP BY t.prompt_id
    ),
    hardest AS (
        FROM prompts
        WHERE attempts >= {least}
        ORDER BY solved / attempts, attempts DESC, latest DESC
        LIMIT 10
    ),
    mistakes AS (
        SELECT t.prompt_id, v.extracted AS mistake, count(*) AS times
        FROM hardest
        JOIN trajectories t USING (prompt_id)
        JOIN verdicts v USING (trajectory_id)
        WHERE v.verdict = 'wrong' AND v.extracted IS NOT NULL
        GROUP BY t.prompt_id, v.extracted
        QUALIFY row_number() OVER (PARTITION BY t.prompt_id ORDER BY count(*) DESC, v.extracted) = 1
    )
    SELECT t.problem, t.gold, t.round, h.attempts, h.solved, h.cut_off, m.mistake, m.times
    FROM hardest h
    JOIN trajectories t ON t.trajectory_id = h.latest
    LEFT JOIN mistakes m ON m.prompt_id = h.prompt_id
    ORDER BY h.solved / h.attempts, h.attempts DESC, h.latest DESC
"""


@dataclass(frozen=True)
class Curve:
    """A metric of every round: a column of `rounds`, its name, its unit, and what it shows in a sentence."""

    column: str
    name: str
    unit: str
    about: str
    percent: bool = False
    may_be_log: bool = False


CURVES = (
    Curve("delta_abs", "Mean |Δ|", "nats", "The residual of fresh responses. The loss is its square."),
    Curve(
        "drawn_delta_abs",
        "Mean |Δ| of draws",
        "nats, before each update",
        "The same over the trajectories that the updates train on.",
    ),
    Curve(
        "residual_left",
        "Residual left",
        "of |r/β|",
        "Mean |Δ| over the replay buffer, relative to its rewards. At 0% all are fitted.",
        percent=True,
    ),
    Curve(
        "log_ratio",
        "Log-ratio to the reference",
        "nats per response",
        "How far the policy has moved from the reference. A reset returns it to 0.",
    ),
    Curve("kl_k3", "KL to the reference", "nats per token, k3", "An estimate that is never negative."),
    Curve("entropy", "Entropy", "nats per token", "Near 0, all responses to a prompt are the same."),
    Curve("response_length", "Response length", "tokens", "The mean over fresh responses."),
    Curve("truncated", "Cut off", "of responses", "Responses that reached the length limit.", percent=True),
    Curve("grad_norm", "Gradient norm", "before clipping", "The length of an update's gradient.", may_be_log=True),
    Curve(
        "grad_clipped",
        "Clipped",
        "of updates",
        "Updates whose gradient norm exceeded learner.grad_clip.",
        percent=True,
    ),
    Curve("staleness", "Staleness of draws", "rounds", "The age of the drawn trajectories. 0 is fresh."),
    Curve(
        "effective_sample_size",
        "Effective sample size",
        "trajectories per update",
        "The number of equally weighted trajectories that the weights amount to.",
    ),
    Curve(
        "engine_gap",
        "Engine mismatch",
        "nats per token",
        "The difference between the trainer's and the engine's log-probs of the same tokens.",
    ),
    Curve("engine_lag", "Engine lag", "rounds", "0 if the engine has the current weights, 1 if one round behind."),
)


class Run:
    """The inputs of the report: the config, the manifests, and SQL over the tables."""

    def __init__(self, directory: RunDirectory, manifests: Sequence[Manifest], ask: Ask) -> None:
        self.directory = directory
        self.manifests = manifests
        self.ask = ask
        self.settings: dict[str, Any] = load_config(directory.config).model_dump(mode="json")
        self.rounds = max((one.round for one in self.of("recording")), default=0)
        """The last recorded round."""
        self.last = max([self.rounds, *(one.round for one in self.of("evaluation"))])
        """The end of the round axes."""
        self.source: str = self.settings["rollouts"].get("source", "engine")
        """The setting `rollouts.source`."""
        self.resets = [one.round for one in self.of("reference_reset")]

    def of(self, stage: str) -> list[Manifest]:
        """Return a stage's manifests by round."""
        return [manifest for manifest in self.manifests if manifest.stage == stage]


def accuracy(run: Run) -> Section | None:
    """Plot accuracy of the policy after each round, in training and on held-out problems."""
    training, held_out = run.ask(statement(_TRAINING)), run.ask(statement(HELD_OUT))
    if not training and not held_out:
        return None
    intervals = [over_problems(row["shares"]) for row in held_out]
    lines = [
        Series("training", _column(training, "policy_round"), _column(training, "accuracy"), style="thin"),
        Series(
            "held-out",
            _column(held_out, "round"),
            _column(held_out, "accuracy"),
            marked=True,
            low=[one.low if one else None for one in intervals],
            high=[one.high if one else None for one in intervals],
        ),
    ]
    readings = _accuracy_readings(training, held_out, intervals)
    plot = line_chart(
        lines,
        rounds_scale(run.last),
        value_scale([value for line in lines for value in (*line.y, *line.high)], percent=True),
        description="Accuracy by round",
        readings=readings,
        size="tall",
        resets=run.resets,
        text=percent,
    )
    return {
        "panel": Panel("Accuracy after each round", readings[-1][1], plot),
        "queries": [statement(query) for query in (_TRAINING, HELD_OUT, GAIN)],
    }


def curves(run: Run) -> Section | None:
    """Plot the metrics of the policy and of the data of its updates."""
    rows = run.ask(statement(_CURVES))
    known = [curve for curve in CURVES if any(row[curve.column] is not None for row in rows)]
    panels = [curve_panel(run, curve, rows) for curve in known]
    return {"panels": panels, "queries": [statement(_CURVES)]} if rows else None


def time_by_stage(run: Run) -> Section | None:
    """Plot the seconds of each stage per round, and return those in total and outside the rounds."""
    width = -(-max(run.rounds, 1) // MOST_BARS)
    means = ",\n    ".join(f"avg({stage}_seconds) AS {stage}" for stage in STAGES)
    sums = ",\n    ".join(f"sum({stage}_seconds) AS {stage}" for stage in STAGES)
    bars_sql, totals_sql = statement(_BARS, means=means, width=width), statement(_TOTALS, sums=sums)
    bars, (totals,) = run.ask(bars_sql), run.ask(totals_sql)
    if not bars:
        return None
    plot = stacked_chart(
        [(row["first"] - 1.0, float(row["last"]), {stage: row[stage] for stage in STAGES}) for row in bars],
        rounds_scale(run.last),
        description="Seconds per round by stage",
        readings=[_bar_reading(row) for row in bars],
    )
    total = sum(totals.values())
    unit = "seconds" if width == 1 else f"seconds, means of {width} rounds"
    return {
        "panel": Panel("Time of each round", f"on average {duration(total / run.rounds)}", plot, unit),
        "stages": totals,
        "total": total,
        "outside": _outside(run),
        "wall": wall_seconds(run.directory),
        "queries": [bars_sql, totals_sql],
    }


def hardest(run: Run) -> Section:
    """Return the training prompts with the lowest shares of right answers."""
    least = max(4, run.settings["rollouts"].get("samples", 1))
    query = statement(_HARDEST, least=least)
    return {"least": least, "rows": run.ask(query), "queries": [query]}


def _accuracy_readings(
    training: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    intervals: Sequence[Interval | None],
) -> list[tuple[float, str]]:
    parts: dict[int, list[str]] = defaultdict(list)
    for row in training:
        parts[row["policy_round"]].append(f"training {percent(row['accuracy'])}")
    for row, one in zip(held_out, intervals, strict=True):
        interval = f" ({percent(one.low)} to {percent(one.high)})" if one else ""
        parts[row["round"]].append(f"held-out {percent(row['accuracy'])}{interval}")
    return [(round, f"after round {round}: {', '.join(texts)}") for round, texts in sorted(parts.items())]


def over_problems(values_by_set: Sequence[Sequence[float]] | None) -> Interval | None:
    """Return the mean over sets with its interval; None without problems, or where each set's values are equal."""
    if not values_by_set:
        return None
    found = macro({str(place): np.array(values) for place, values in enumerate(values_by_set)}, SEED)
    return found if found.low < found.high else None


def curve_panel(run: Run, curve: Curve, rows: Sequence[dict[str, Any]]) -> Panel:
    """Plot a curve over the rounds that have a value."""
    shown = percent if curve.percent else number
    known = [row for row in rows if row[curve.column] is not None]
    rounds, values = _column(known, "round"), _column(known, curve.column)
    y = value_scale(values, may_be_log=curve.may_be_log, percent=curve.percent)
    plot = line_chart(
        [Series(curve.name, rounds, values)],
        rounds_scale(run.last, ticks=4),
        y,
        description=f"{curve.name} by round",
        readings=[(round, f"round {round}: {shown(value)}") for round, value in zip(rounds, values, strict=True)],
        resets=run.resets,
    )
    unit = curve.unit + (", log scale" if y.log else "")
    return Panel(curve.name, shown(values[-1]), plot, unit, curve.about)


def _bar_reading(row: dict[str, Any]) -> tuple[float, str]:
    parts = ", ".join(f"{stage} {duration(row[stage])}" for stage in STAGES if row[stage])
    rounds = f"round {row['first']}" if row["first"] == row["last"] else f"rounds {row['first']} to {row['last']}"
    total = duration(sum(row[stage] for stage in STAGES))
    return (row["first"] - 1 + row["last"]) / 2, f"{rounds}: {total} ({parts})"


def _outside(run: Run) -> dict[str, float]:
    """Return the seconds outside the bars: before the first round, and in stages without a column."""
    spent: dict[str, float] = defaultdict(float)
    for manifest in run.manifests:
        name = manifest.stage.replace("_", " ")
        if manifest.stage in ("warm_start", "checkpoint", "recording", "reference_reset"):
            spent[name] += manifest.seconds
        elif manifest.round == 0:
            spent[f"{name} before training"] += manifest.seconds
    return spent


def _column(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]
