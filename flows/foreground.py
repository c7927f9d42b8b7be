"""Running the flow in the foreground: the same flow as the deployment's, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.preparation import gpu_notes, prepare
from flows.server import LOCAL_API, answers, check_api, configured_api
from flows.streams import exit_code
from flows.terminal import say
from reval_core import launch
from reval_core.errors import RunStopped
from reval_core.learning import distributed


def train_here(config: Path, run_dir: Path | None, overrides: Sequence[str], as_json: bool) -> None:
    """Train in this process, or follow the first one that `accelerate launch` started, and print the summary."""
    settings, directory = prepare(config, overrides, run_dir)  # before Prefect takes its seconds to start
    if not launch.is_first():
        distributed.follow(directory, settings)
        return
    for note in gpu_notes(settings):
        say(note, err=True)
    from flows.show import show_summary

    def flow() -> None:
        from flows.train import train

        train(str(config), list(overrides), str(run_dir) if run_dir else None)

    delivered = run_flow(flow)
    if not delivered and not directory.is_finished(settings):
        raise RunStopped(f"Prefect's server stopped answering; start it again, then reval resume {directory.path}")
    show_summary(directory, as_json)
    if not delivered:
        leave_undelivered()


def leave_undelivered() -> None:
    """End this process, whose work is closed: Prefect would try for minutes to deliver each of its events."""
    say("Prefect's server stopped answering: its page does not show how this run ended", err=True)
    os._exit(exit_code(0))


def run_flow(flow: Callable[[], object]) -> bool:
    """Run a flow here, and say whether Prefect could be told how it ended. `flow` imports it and calls it.

    A local server that answers is used; otherwise Prefect starts one for the run.
    """
    url = prefect_api()
    import httpx
    from prefect.settings import PREFECT_API_URL, temporary_settings

    try:
        with temporary_settings({PREFECT_API_URL: url} if url else {}):
            flow()
    except httpx.TransportError:
        return False
    except RuntimeError as error:
        if "Failed to reach API" in str(error):
            raise RunStopped(f"{os.environ.get('PREFECT_API_URL')}: no Prefect server answers there") from error
        if "ephemeral Prefect API server" not in str(error):
            raise
        raise RunStopped(
            "Prefect's server did not start; prefect server start says why. Where another version of Prefect made "
            "its database, set PREFECT_HOME to a new folder"
        ) from error
    return True


def prefect_api() -> str | None:
    """The API that a flow in this process is reported to; None where Prefect starts a server for it.

    Raises InputError if one is configured and is not to be used (see `check_api`).
    """
    # The server that Prefect starts for a run needs more than its default 20 s on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
    # Prefect writes a line for every task; the terminal shows one a round. Its page has the rest.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    # Training does not need the server; its end is reported to one that is gone for seconds and not for minutes.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")
    url = configured_api()  # reads the settings above, once for this process
    if url is not None:
        check_api(url)
    elif answers(LOCAL_API):
        os.environ["PREFECT_API_URL"] = url = LOCAL_API
    return url
