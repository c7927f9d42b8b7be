"""`reval reindex`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, RUN


@click.command()
@RUN
@AS_JSON
def reindex(run: Path, as_json: bool) -> None:
    """Rebuild RUN's database from its Parquet files."""
    from reval.flows.upkeep import show_reindex

    show_reindex(run, as_json)
