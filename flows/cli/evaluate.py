"""`reval eval`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, OVERRIDE


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
    from reval.flows.evaluating import (
        benchmarks_override,
        evaluate_here,
        protocol_file,
        show_evaluation_plan,
        use_data,
    )

    if data is not None:
        use_data(data)
    given = [benchmarks_override(benchmarks)] if benchmarks else []
    given += [f"{name}={value}" for name, value in (("samples", samples), ("limit", limit)) if value is not None]
    protocol = protocol_file(preset) if preset else None
    act = show_evaluation_plan if dry_run else evaluate_here
    act(model, protocol, [*given, *overrides], round, out, as_json)
