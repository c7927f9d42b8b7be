"""`reval prune`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, RUN


@click.command()
@RUN
@click.option("--yes", is_flag=True, help="Delete; without it, only show what can be deleted.")
@AS_JSON
def prune(run: Path, yes: bool, as_json: bool) -> None:
    """Show or delete old tokens of a finished RUN.

    Rounds outside its buffer lose their per-token columns, and their small files are merged.
    """
    from reval.flows.upkeep import show_prune

    show_prune(run, yes, as_json)
