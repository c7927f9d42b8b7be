"""`reval resume`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, RUN


@click.command()
@RUN
@AS_JSON
def resume(run: Path, as_json: bool) -> None:
    """Resume RUN from the last completed stage."""
    from reval.flows.foreground import train_here
    from reval_core.storage.run_directory import existing_run

    train_here(existing_run(run).config, run, (), as_json)
