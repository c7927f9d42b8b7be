"""`reval eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reval.flows.cli.options import AS_JSON, OVERRIDE
from reval.flows.terminal import print_json, print_table, say, short

if TYPE_CHECKING:
    from reval.flows.preparation import PreparedEvaluation


@click.command("eval")
@click.argument("model")
@click.option(
    "--benchmarks",
    metavar="SETS",
    help="Such as gsm8k:50,math500:20, or files; default: the run's held-out problems.",
)
@click.option("--samples", type=click.IntRange(min=1), help="Responses per problem; default: 16.")
@click.option("--limit", type=click.IntRange(min=1), help="Maximum problems per set, chosen by the seed.")
@click.option("--preset", help="A protocol: paper, arithmetic, or your own YAML file.")
@click.option("--data", type=click.Path(path_type=Path), help="A directory with registered sets.")
@click.option(
    "--round", type=click.IntRange(min=0), help="For a run: the policy after this round; default: the last."
)
@click.option("--out", type=click.Path(path_type=Path), help="Output directory; default: evals/<name>.")
@click.option("--dry-run", is_flag=True, help="Validate everything and show the plan without changing anything.")
@OVERRIDE
@AS_JSON
def evaluate(
    model: str,
    benchmarks: str | None,
    samples: int | None,
    limit: int | None,
    preset: str | None,
    data: Path | None,
    round: int | None,
    out: Path | None,
    dry_run: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate MODEL on problem sets.

    MODEL is a model directory or a run. The same command resumes an interrupted evaluation.
    """
    from reval.flows.named_inputs import protocol_file, protocol_overrides, use_data
    from reval.flows.preparation import prepare_evaluation

    if data is not None:
        use_data(data)
    given = protocol_overrides(benchmarks, samples, limit)
    protocol = protocol_file(preset) if preset else None
    evaluation = prepare_evaluation(model, protocol, [*given, *overrides], round, out)
    if dry_run:
        from reval.flows.plan import show_evaluation_plan

        show_evaluation_plan(evaluation, as_json)
    else:
        _evaluate(evaluation, as_json)


def _evaluate(evaluation: PreparedEvaluation, as_json: bool) -> None:
    """Evaluate in this process and print the metrics."""
    from reval.flows.foreground import evaluate_here, leave_undelivered
    from reval_core.atomic_files import read_json

    delivered = evaluate_here(evaluation)
    results, directory = read_json(evaluation.directory.results), evaluation.directory.path
    if as_json:
        print_json({**results, "out": str(directory)})
    else:
        _show(results, directory)
    if not delivered:
        leave_undelivered()


def _show(results: dict[str, Any], directory: Path) -> None:
    from reval_core.evaluation.results import results_rows

    names, rows = results_rows(results)
    say()
    print_table(names, rows)
    say(f"All metrics: {short(directory)}/results.json, results.md. Every response:")
    say(f"  reval sql {short(directory)} \\")
    say('    "SELECT problem_set, verdict, count(*) FROM evaluations')
    say(f"     WHERE policy LIKE '{results['policy'][:12]}%' GROUP BY ALL\"")
