"""`reval sql`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, RUN


@click.command()
@RUN
@click.argument("query")
@AS_JSON
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV for programs.")
def sql(run: Path, query: str, as_json: bool, as_csv: bool) -> None:
    """Query RUN's tables with SQL, also while it trains.

    docs/schema.md describes the tables.
    """
    from reval.flows.querying import show_query

    show_query(run, query, "json" if as_json else "csv" if as_csv else "table")
