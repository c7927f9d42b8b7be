"""`reval runs`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), default="runs")
@AS_JSON
def runs(directory: Path, as_json: bool) -> None:
    """List the runs in DIRECTORY (default: runs)."""
    from reval.flows.show import show_runs

    show_runs(directory, as_json)
