"""`reval regrade`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, RUN


@click.command()
@RUN
@click.option("--mode", type=click.Choice(["strict", "lenient"]), help="Grading rules; default: the run's.")
@click.option("--methods", metavar="METHOD,…", help="Extraction methods, such as boxed,phrase.")
@click.option("--function", metavar="MODULE:NAME", help="A reward function to use instead of the rules.")
@click.option("--round", "rounds", type=click.IntRange(min=0), multiple=True, help="Only this round; default: all.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="New Parquet file; default: RUN-regraded.parquet next to RUN."
)
@AS_JSON
def regrade(
    run: Path,
    mode: str | None,
    methods: str | None,
    function: str | None,
    rounds: tuple[int, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Grade RUN's stored responses under other rules.

    Shows which verdicts change, and the rewards that each round would have had. RUN may be in training, an import
    or an evaluation; it is not changed.
    """
    from reval.flows.regrading import regrade_run

    regrade_run(run, mode, methods, function, rounds, out, as_json)
