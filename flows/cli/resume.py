"""`reval resume`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, RUN
from reval.flows.cli.train import train_and_show


@click.command()
@RUN
@AS_JSON
def resume(run: Path, as_json: bool) -> None:
    """Resume RUN from the last completed stage."""
    from reval_core.storage.run_directory import existing_run

    train_and_show(existing_run(run).config, (), run, as_json)
