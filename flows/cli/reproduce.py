"""`reval reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from reval.flows.cli.options import AS_JSON
from reval.flows.terminal import print_json, print_rows, say, short
from reval_core.errors import InputError, RunStopped


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
    if figures and everything:
        raise InputError("reval reproduce: give figures or --all, not both")
    wanted = all_figures() if everything else figures
    if wanted:
        reproduce_here(wanted, seeds, out, workers, as_json)
    else:
        _show_figures(out, (), as_json)


def all_figures() -> list[str]:
    """The figures of `--all`: without the searches and without those whose model is missing."""
    from reval_core.reproduction.study import absent_model, known_figures

    names = [name for name in known_figures() if not name.startswith("search-")]
    absent = {name: path for name in names if (path := absent_model(name))}
    for name, path in absent.items():
        say(f"{name} is skipped: {path} does not exist; `make smollm2` creates it", err=True)
    return [name for name in names if name not in absent]


def reproduce_here(
    figures: Sequence[str], seeds: int | None, out: Path, workers: int | None, as_json: bool
) -> None:
    """Reproduce figures in this process and its workers, and print what was measured."""
    from reval.flows.foreground import leave_undelivered, run_flow
    from reval_core.reproduction.study import absent_model, check_out, load_figure, units

    check_out(out)
    for name in figures:
        units(load_figure(name), out, seeds)  # reports errors before Prefect, which takes seconds to start
        if path := absent_model(name):
            raise InputError(f"{name}: {path} does not exist; `make smollm2` creates it")
    results: dict[str, object] = {}

    def flow() -> None:
        from reval.flows.deployed import ATTENDED
        from reval.flows.reproduce import reproduce

        results.update(reproduce.with_options(**ATTENDED)(list(figures), seeds, str(out), workers))

    delivered = run_flow(flow)
    if not results:
        raise RunStopped("the Prefect server stopped responding; restart it and run the same command again")
    if as_json:
        print_json({name: _in_short(out, name) for name in figures})
    else:
        _show_figures(out, figures, as_json=False)
        say(f"Page  {short((out / 'index.html').absolute())}")
    if not delivered:
        leave_undelivered()


def _show_figures(out: Path, names: Sequence[str], as_json: bool) -> None:
    """Print these figures, or all, with the results of those that were reproduced."""
    from reval_core.reproduction.result import in_words
    from reval_core.reproduction.study import known_figures, load_figure

    found = {name: _made(out, name) for name in names or known_figures()}
    if as_json:
        print_json({name: one and _in_short(out, name) for name, one in found.items()})
        return
    rows = []
    for name, one in found.items():
        figure = load_figure(name)
        said = in_words(one["verdict"], one["paper"]) if one else ""
        rows.append([name, figure.title, f"{figure.minutes:g} min", said])
    print_rows(["figure", "what it shows", "time", "verdict"], rows)


def _made(out: Path, name: str) -> dict[str, Any]:
    from reval_core.atomic_files import read_json

    path = out / "figures" / f"{name}.json"
    return read_json(path) if path.exists() else {}


def _in_short(out: Path, name: str) -> dict[str, Any]:
    """The verdict and the measured numbers."""
    found = _made(out, name)
    if not found:
        raise InputError(f"{name}: was not reproduced in {out}")
    return {"verdict": found["verdict"], "says": found["says"], **found["numbers"]}
