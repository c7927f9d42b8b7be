"""The report of a run: one HTML page with its results, and the SQL behind every value.

Only published tables are read, so a report can be written for a run that is still training or has failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from reval_core.replay_buffer.index import sql_views
from reval_core.report.examples import example_answers, recent
from reval_core.report.fit import fit, fit_in_words, fits
from reval_core.report.formats import duration, number, percent, points, statement
from reval_core.report.off_policy import off_policy
from reval_core.report.page import publish_page
from reval_core.report.sections import (
    GAIN,
    HELD_OUT,
    Ask,
    Run,
    accuracy,
    curves,
    hardest,
    over_problems,
    time_by_stage,
)
from reval_core.storage.run_directory import RunDirectory, wall_seconds
from reval_core.storage.tables import Manifest


def write_report(directory: RunDirectory) -> Path:
    """Write `report.html` into the run directory and return its path."""
    manifests = directory.manifests()
    with _asking(directory, manifests) as ask, _asking(directory, recent(manifests)) as ask_recent:
        run = Run(directory, manifests, ask)
        publish_page(
            directory.report,
            "report/templates/report.html.j2",
            run=run,
            summary=" ".join(filter(None, [_outcome(run), _unfinished(run)])),
            tiles=_tiles(run),
            outcome=accuracy(run) if run.source == "engine" else fit(run),
            curves=curves(run),
            off_policy=off_policy(run),
            time=time_by_stage(run),
            hardest=hardest(run),
            examples=example_answers(directory, ask_recent),
            config=directory.config.read_text(encoding="utf-8"),
        )
    return directory.report


@contextmanager
def _asking(directory: RunDirectory, manifests: Sequence[Manifest]) -> Iterator[Ask]:
    with closing(sql_views(directory.path, manifests)) as connection:
        # One row per file: in a long run opening the files dominates a query, so they are read once.
        connection.execute("CREATE TEMP TABLE rounds AS FROM rounds")
        yield cache(lambda sql: connection.sql(sql).to_arrow_table().to_pylist())


def _tiles(run: Run) -> dict[str, str]:
    trajectories = sum(file.rows for one in run.of("rollouts") for file in one.files_of("trajectories"))
    engines = sorted({one.info["engine"] for one in run.of("rollouts")})
    if run.source == "engine":
        name, shown = "held-out accuracy", [percent(row["accuracy"]) for row in run.ask(statement(HELD_OUT))]
    else:
        name, shown = "mean |Δ|", [number(row["delta_abs"]) for row in fits(run)]
    tiles = {
        name: " → ".join([*shown[:1], *shown[1:][-1:]]) or "–",
        "rounds": f"{run.rounds} of {run.settings['rounds']}" if run.source != "import" else "–",
        "trajectories": f"{trajectories:,}",
        "wall time": duration(wall_seconds(run.directory)),
        "engine": ", ".join(engines) or "–",
    }
    scored = run.of("consistency")
    if scored and run.settings["objective"].get("beta_times_length"):  # the config does not contain the resulting β
        tiles["β"] = number(scored[0].info["beta"])
    return tiles


def _outcome(run: Run) -> str:
    if run.source == "import":
        return "Imported responses, for other runs to train on."
    return _accuracy_in_words(run) if run.source == "engine" else fit_in_words(run)


def _accuracy_in_words(run: Run) -> str:
    held_out = run.ask(statement(HELD_OUT))
    if not held_out:
        return "No policy has been evaluated yet."
    first, last = held_out[0], held_out[-1]
    if len(held_out) == 1:
        return f"Before training, held-out accuracy is {percent(first['accuracy'])} ({first['problems']} problems)."
    (change,) = run.ask(statement(GAIN))
    gain, interval = change["gain"], over_problems(change["gains"])
    clear = interval is not None and interval.clear
    verb = ("rose" if gain > 0 else "fell") if clear else "went"
    text = f"Held-out accuracy {verb} from {percent(first['accuracy'])} to {percent(last['accuracy'])}"
    text += f" in {last['round']} rounds"
    if interval:
        shown = f"95% interval {points(interval.low)} to {points(interval.high)}"
        text += f" ({points(gain)} points, {shown}, over {last['problems']} problems)"
        text += "" if clear else ", which is not a clear difference"
    best = max(held_out, key=lambda row: (row["accuracy"], -row["round"]))
    if best["accuracy"] > last["accuracy"]:
        text += f". The best evaluation was {percent(best['accuracy'])}, after round {best['round']}"
    return f"{text}."


def _unfinished(run: Run) -> str:
    planned = run.settings["rounds"]
    if run.rounds >= planned or run.source == "import" or _reached_target(run):
        return ""
    text = f"The run is not finished: {run.rounds} of {planned} rounds are recorded"
    if not run.manifests:
        return f"{text}."
    latest = max(run.manifests, key=lambda manifest: manifest.ended_at)
    return f"{text}, and the last completed stage is {latest.stage.replace('_', ' ')} of round {latest.round}."


def _reached_target(run: Run) -> bool:
    target = run.settings["evaluation"].get("target")
    accuracies = [one.info["accuracy"] for one in run.manifests if one.stage == "evaluation"] if target else []
    return bool(accuracies) and accuracies[-1] >= target
