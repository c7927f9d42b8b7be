"""`reval serve`."""

from __future__ import annotations

import time

import click

from reval.flows.terminal import say, short


@click.command()
def serve() -> None:
    """Run a Prefect server and a worker.

    Then `prefect deployment run reval-train/default --param config=CONFIG` trains.
    """
    from reval.flows.server import server, worker
    from reval_core.config.packaged import PACKAGED

    with server() as url, worker():
        say(f"Prefect UI: {url.removesuffix('/api')}")
        say("Start a run in another terminal:")
        say(f"  export PREFECT_API_URL={url}")
        say(f"  prefect deployment run reval-train/default --param config={short(PACKAGED / 'demo.yaml')}")
        say("Stop with Ctrl-C.")
        while True:
            time.sleep(3600)
