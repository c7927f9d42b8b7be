"""`reval restore`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON


@click.command()
@click.argument("url")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--take-over", is_flag=True, help="Take the run from a process that still holds its lease.")
@click.option("--dry-run", is_flag=True, help="Check everything and show what would be restored; write nothing.")
@AS_JSON
def restore(url: str, directory: Path, take_over: bool, dry_run: bool, as_json: bool) -> None:
    """Restore a run from its mirror at URL (storage.mirror) into a new directory DIR, to resume it here."""
    from reval.flows.restoring import show_restore

    show_restore(url, directory, take_over, dry_run, as_json)
