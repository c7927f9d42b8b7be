"""`reval reproduce`: make figures of the paper in the foreground and print what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.foreground import leave_undelivered, run_flow
from flows.terminal import print_json, print_rows, say, short
from reval_core.atomic_files import read_json
from reval_core.errors import InputError, RunStopped
from reval_core.reproduction.result import in_words
from reval_core.reproduction.study import absent_model, check_out, known_figures, load_figure, units


def all_figures() -> list[str]:
    """What `--all` makes: the figures, without the searches and without those whose model is not here."""
    names = [name for name in known_figures() if not name.startswith("search-")]
    absent = {name: path for name in names if (path := absent_model(name))}
    for name, path in absent.items():
        say(f"{name} is left out: there is no {path}; `make smollm2` makes it", err=True)
    return [name for name in names if name not in absent]


def reproduce_here(
    figures: Sequence[str], seeds: int | None, out: Path, workers: int | None, as_json: bool
) -> None:
    """Make figures in this process and those that it starts, and print what was measured."""
    check_out(out)
    for name in figures:
        units(load_figure(name), out, seeds)  # whatever is wrong is said before Prefect takes its seconds to start
        if path := absent_model(name):
            raise InputError(f"{name}: there is no {path}; `make smollm2` makes it")
    results: dict[str, object] = {}

    def flow() -> None:
        from flows.reproduce import reproduce

        results.update(reproduce(list(figures), seeds, str(out), workers))

    delivered = run_flow(flow)
    if not results:
        raise RunStopped("Prefect's server stopped answering; start it again and give the same command")
    if as_json:
        print_json({name: _in_short(out, name) for name in figures})
    else:
        show_figures(out, figures)
        say(f"Page  {short((out / 'index.html').absolute())}")
    if not delivered:
        leave_undelivered()


def show_figures(out: Path, names: Sequence[str] = (), as_json: bool = False) -> None:
    """Print what there is to reproduce, and what came of it where it was."""
    found = {name: _made(out, name) for name in names or known_figures()}
    if as_json:
        print_json({name: one and _in_short(out, name) for name, one in found.items()})
        return
    rows = []
    for name, one in found.items():
        figure = load_figure(name)
        said = in_words(one["verdict"], one["paper"]) if one else ""
        rows.append([name, figure.title, f"{figure.minutes:g} min", said])
    print_rows(["figure", "what it shows", "takes", "verdict"], rows)


def _made(out: Path, name: str) -> dict[str, Any]:
    path = out / "figures" / f"{name}.json"
    return read_json(path) if path.exists() else {}


def _in_short(out: Path, name: str) -> dict[str, Any]:
    """The verdict and the measured numbers."""
    found = _made(out, name)
    if not found:
        raise InputError(f"{name}: was not made in {out}")
    return {"verdict": found["verdict"], "says": found["says"], **found["numbers"]}
