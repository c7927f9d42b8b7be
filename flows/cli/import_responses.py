"""`reval import`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, OVERRIDE, column


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    help="The config that will train on the responses.",
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="New run directory; default: runs/<file name>.")
@column("problem, response, gold or reward", "response=completion")
@OVERRIDE
@AS_JSON
def import_responses(
    file: Path,
    config: Path,
    run_dir: Path | None,
    columns: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Import existing responses for offline training.

    FILE is JSONL, JSON, CSV, Parquet or Arrow. Runs with rollouts.source: stored train on the imported responses.
    """
    from reval.flows.importing import import_file

    import_file(file, config, overrides, run_dir, columns, as_json)
