"""`reval compare`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, metavar="RUN RUN …")
@click.option(
    "--round", type=click.IntRange(min=0), help="The policy after this round; default: the last one evaluated."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="compare.html",
    show_default=True,
    help="The page to write.",
)
@AS_JSON
def compare(runs: tuple[Path, ...], round: int | None, out: Path, as_json: bool) -> None:
    """Compare runs or evaluations with the first one.

    Uses the problems that both share: paired intervals, changed problems, and a page with curves.
    """
    from reval.flows.comparing import show_comparison

    show_comparison(runs, round, out, as_json)
