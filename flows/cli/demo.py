"""`reval demo`."""

from __future__ import annotations

import click


@click.command()
def demo() -> None:
    """Train configs/demo.yaml through Prefect."""
    from reval.flows.demo import run_demo

    run_demo()
