"""`reval serve`."""

from __future__ import annotations

import click

from reval.flows.terminal import say, short
from reval_core.errors import RevalError


@click.command()
@click.option("--pool", default="reval", show_default=True, help="Work pool; created as a process pool if needed.")
@click.option(
    "--database",
    metavar="URL",
    help="The server's PostgreSQL database, postgresql+asyncpg://USER:PASSWORD@HOST/NAME; default: SQLite.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the server listens on.")
@click.option("--port", type=click.IntRange(1, 65535), default=4200, show_default=True, help="Its port.")
def serve(pool: str, database: str | None, host: str, port: int) -> None:
    """Run a Prefect server and a worker.

    Then `prefect deployment run reval-train/default --param config=CONFIG` trains. With PREFECT_API_URL, the server
    that responds there is used, and only a worker is started.
    """
    from reval.flows.server import LocalServer, server, worker
    from reval_core.config.packaged import PACKAGED

    with server(LocalServer(host, port, database)) as url, worker(pool) as process:
        say(f"Prefect UI: {url.removesuffix('/api')}")
        say("Start a run in another terminal:")
        say(f"  export PREFECT_API_URL={url}")
        say(f"  prefect deployment run reval-train/default --param config={short(PACKAGED / 'demo.yaml')}")
        say("Stop with Ctrl-C.")
        raise RevalError(f"the worker of the work pool {pool} ended with exit code {process.wait()}")
