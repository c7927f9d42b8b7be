"""The flow `reval-evaluate`: evaluates a policy on problem sets, or resumes an interrupted evaluation."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from reval.flows.deployed import ATTENDED, FLOW, final_errors, turn
from reval.flows.preparation import PreparedEvaluation, evaluation_path, prepare_evaluation
from reval.flows.progress import StageBar
from reval.flows.rounds import run_benchmarks
from reval.flows.terminal import short, shown_warnings
from reval.tasks.artifacts import show_text
from reval.tasks.evaluation_tracking import track_evaluation
from reval.tasks.stage_task import run_as_task
from reval_core.atomic_files import publish_file, publish_json
from reval_core.evaluation.context import BenchmarkRun, open_evaluation_context
from reval_core.evaluation.model_source import find_model_source
from reval_core.evaluation.results import find_results, results_markdown
from reval_core.output.control_characters import visible_lines

_prepared: ContextVar[PreparedEvaluation | None] = ContextVar("prepared", default=None)
"""The evaluation that `evaluate_prepared` hands to the flow: a parameter would be sent to Prefect."""


def _name() -> str:
    """The name of a flow run: its evaluation directory, or its model if that follows from the model."""
    given = flow_run.parameters
    return short(Path(given["out"]).absolute()) if given.get("out") else str(given["model"])


@flow(name="reval-evaluate", flow_run_name=_name, **FLOW)
def evaluate(
    model: str,
    protocol: str | None = None,
    overrides: list[str] | None = None,
    round: int | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model directory or a run's policy, and return the metrics.

    Responses and verdicts in `out` from an earlier attempt, or an evaluation with the same settings, are reused.

    Args:
        model: A model directory or a run directory.
        protocol: A YAML file; None for the run's own held-out protocol.
        overrides: Settings such as `samples=4`.
        round: For a run, the round whose policy is evaluated; None for the last.
        out: The output directory; None for `evals/<name>`.
    """
    if (prepared := _prepared.get()) is not None:
        return _evaluate(prepared)
    place = Path(out) if out else None
    with final_errors(), turn(evaluation_path(find_model_source(model, round), place)):
        return _evaluate(
            prepare_evaluation(model, Path(protocol) if protocol else None, overrides or [], round, place)
        )


def _evaluate(evaluation: PreparedEvaluation) -> dict[str, Any]:
    directory, source, settings = evaluation.directory, evaluation.source, evaluation.protocol
    with (
        shown_warnings(),
        open_evaluation_context(directory, source, settings, evaluation.problems) as context,
    ):
        with StageBar(context, stderr=True) as bar:
            for benchmark in run_benchmarks(context, run_as_task):
                bar.line(*_line(benchmark, context.kept))
        results = find_results(directory, source, settings, context.benchmarks)
        publish_json(directory.results, results)
        text = visible_lines(results_markdown(results))
        publish_file(directory.table, lambda partial: partial.write_text(text, encoding="utf-8"))
        track_evaluation(directory, settings, results)
    show_text("reval-evaluation", text, f"Evaluation {directory.name}")
    return results


def evaluate_prepared(evaluation: PreparedEvaluation) -> None:
    """Execute the flow, once and without a limit of time, for an evaluation that is prepared already."""
    token = _prepared.set(evaluation)
    protocol = str(evaluation.file) if evaluation.file else None
    try:
        evaluate.with_options(**ATTENDED)(
            evaluation.model, protocol, list(evaluation.overrides), evaluation.round, str(evaluation.directory.path)
        )
    finally:
        _prepared.reset(token)


def _line(benchmark: BenchmarkRun, kept: set[str]) -> list[str | tuple[str, str]]:
    """The line printed for a finished benchmark run. Clears `kept`."""
    words = {"rollouts": "responses", "evaluation": "verdicts"}
    known = " and ".join(words[stage] for stage in words if stage in kept)
    kept.clear()
    return [
        f"{benchmark.name}: {len(benchmark.problems):,} problems",
        (f"  (reused: {known})" if known else "", "dim"),
    ]
