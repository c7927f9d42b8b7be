"""The flow `reval-train`: executes a training run, or resumes an interrupted one."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from reval.flows.deployed import ATTENDED, FLOW, final_errors, turn
from reval.flows.leftovers import close_leftovers
from reval.flows.preparation import PreparedRun, prepare, run_path
from reval.flows.progress import Progress
from reval.flows.rounds import train_rounds
from reval.flows.terminal import short, shown_warnings
from reval.tasks.artifacts import show_rounds, show_text
from reval.tasks.stage_task import run_as_task
from reval.tasks.tracking import tracked
from reval_core.atomic_files import publish_json
from reval_core.output.control_characters import visible_lines
from reval_core.pipeline.run_context import open_run_context
from reval_core.report import write_report
from reval_core.report.summary import summarise, summary_markdown

_prepared: ContextVar[PreparedRun | None] = ContextVar("prepared", default=None)
"""The run that `train_prepared` hands to the flow: a parameter would be sent to Prefect."""


def _name() -> str:
    """The name of a flow run: its run directory."""
    given = flow_run.parameters
    return short(_path(given["config"], given.get("run_dir")).absolute())


def _path(config: str, run_dir: str | None) -> Path:
    return run_path(Path(config), Path(run_dir) if run_dir else None)


@flow(name="reval-train", flow_run_name=_name, **FLOW)
def train(config: str, overrides: list[str] | None = None, run_dir: str | None = None) -> dict[str, Any]:
    """Train as `config` describes and return the run's summary.

    Called again with the same arguments, it resumes from the last completed stage.

    Args:
        config: A YAML file.
        overrides: Settings such as `rounds=6`.
        run_dir: The run directory; None for `runs/<config name>`.
    """
    if (prepared := _prepared.get()) is not None:
        return _train(prepared)
    path = _path(config, run_dir)
    with final_errors(), turn(path):
        return _train(prepare(Path(config), overrides or [], path))


def _train(run: PreparedRun) -> dict[str, Any]:
    directory, settings = run.directory, run.config
    with (
        shown_warnings(),
        open_run_context(directory, settings, run.problems) as context,
        tracked(directory, settings) as tracker,
    ):
        close_leftovers(directory)
        with Progress(context) as progress:
            for round in train_rounds(context, run_as_task):
                show_rounds(context, round)
                progress.round_done(round)
                tracker.send(round, context.mirror_metrics())
        summary = summarise(directory)
        publish_json(directory.summary, summary)
        write_report(directory)
    show_text("reval-summary", visible_lines(summary_markdown(summary)), f"Run {directory.name}")
    return summary


def train_prepared(run: PreparedRun) -> None:
    """Execute the flow, once and without a limit of time, for a run that is prepared already."""
    token = _prepared.set(run)
    try:
        train.with_options(**ATTENDED)(str(run.file), list(run.overrides), str(run.directory.path))
    finally:
        _prepared.reset(token)
