"""The flow `reval-train`: executes a training run, or resumes an interrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from reval import tasks
from reval.flows.leftovers import close_leftovers
from reval.flows.preparation import prepare
from reval.flows.progress import Progress
from reval.flows.rounds import train_rounds
from reval.flows.terminal import shown_warnings
from reval.tasks.artifacts import show
from reval.tasks.tracking import tracked
from reval_core.atomic_files import publish_json
from reval_core.output.control_characters import visible_lines
from reval_core.pipeline.run_context import open_run_context
from reval_core.report import write_report
from reval_core.report.summary import summarise, summary_markdown


@flow(name="reval-train", flow_run_name="{config}", persist_result=False)
def train(config: str, overrides: list[str] | None = None, run_dir: str | None = None) -> dict[str, Any]:
    """Train as `config` describes and return the run's summary.

    Called again with the same arguments, it resumes from the last completed stage.

    Args:
        config: A YAML file.
        overrides: Settings such as `rounds=6`.
        run_dir: The run directory; None for `runs/<config name>`.
    """
    settings, directory = prepare(Path(config), overrides or [], Path(run_dir) if run_dir else None)
    with (
        shown_warnings(),
        open_run_context(directory, settings) as context,
        tracked(directory, settings) as tracker,
    ):
        close_leftovers(directory)
        with Progress(context) as progress:
            for round in train_rounds(context, tasks):
                progress.round_done(round)
                tracker.send(round)
        summary = summarise(directory)
        publish_json(directory.summary, summary)
        write_report(directory)
    text = visible_lines(summary_markdown(summary))
    show(create_markdown_artifact, markdown=text, key="reval-summary", description=f"Run {directory.name}")
    return summary
