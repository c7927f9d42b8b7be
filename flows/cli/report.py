"""`reval report`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import RUN
from reval.flows.terminal import say


@click.command()
@RUN
def report(run: Path) -> None:
    """Write RUN's report as a self-contained page.

    It shows curves, the hardest prompts and example trajectories.
    """
    from reval_core.report import write_report
    from reval_core.storage.run_directory import existing_run

    say(write_report(existing_run(run)))
