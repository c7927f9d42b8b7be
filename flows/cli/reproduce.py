"""`reval reproduce`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON
from reval_core.errors import InputError


@click.command()
@click.argument("figures", nargs=-1, metavar="[FIGURE]...")
@click.option("--all", "everything", is_flag=True, help="All figures; searches only when named explicitly.")
@click.option(
    "--seeds", type=click.IntRange(min=1), help="Runs of each arm; default: 3, or the figure's own number."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reproduction"),
    help="Directory for the runs and the page.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Number of parallel runs; default: the number of cores."
)
@AS_JSON
def reproduce(
    figures: tuple[str, ...], everything: bool, seeds: int | None, out: Path, workers: int | None, as_json: bool
) -> None:
    """Reproduce FIGUREs of the paper at a small scale, or list them.

    The same command resumes an interrupted reproduction; completed runs are reused.
    """
    from reval.flows.reproducing import all_figures, reproduce_here, show_figures

    if figures and everything:
        raise InputError("reval reproduce: give figures or --all, not both")
    wanted = all_figures() if everything else figures
    if wanted:
        reproduce_here(wanted, seeds, out, workers, as_json)
    else:
        show_figures(out, as_json=as_json)
