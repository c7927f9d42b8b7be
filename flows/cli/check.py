"""`reval check`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, RUN


@click.command()
@RUN
@AS_JSON
def check(run: Path, as_json: bool) -> None:
    """Check that RUN is intact: files, rows, index and weights."""
    from reval.flows.upkeep import show_check

    show_check(run, as_json)
