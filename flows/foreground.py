"""Runs a flow in the foreground: the same flow as the deployment's, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from reval.flows.preparation import gpu_notes, prepare
from reval.flows.server import LOCAL_API, answers, check_api, configured_api
from reval.flows.streams import exit_code
from reval.flows.terminal import lines_beside_json, say
from reval_core import launch
from reval_core.errors import RunStopped
from reval_core.learning import distributed


def train_here(config: Path, run_dir: Path | None, overrides: Sequence[str], as_json: bool) -> None:
    """Train in this process and print the summary; other processes of `accelerate launch` follow the first one."""
    settings, directory = prepare(config, overrides, run_dir)  # before Prefect, which takes seconds to start
    if not launch.is_first():
        distributed.follow(directory, settings)
        return
    for note in gpu_notes(settings):
        say(note, err=True)
    from reval.flows.show import show_summary

    def flow() -> None:
        from reval.flows.train import train

        train(str(config), list(overrides), str(run_dir) if run_dir else None)

    with lines_beside_json(as_json):
        delivered = run_flow(flow)
    if not delivered and not directory.is_finished(settings):
        raise RunStopped(
            f"the Prefect server stopped responding; restart it, then run reval resume {directory.path}"
        )
    show_summary(directory, as_json)
    if not delivered:
        leave_undelivered()


def leave_undelivered() -> None:
    """Exit at once, all work being complete: Prefect would retry for minutes to deliver each of its events."""
    say("the Prefect server stopped responding: its UI does not show how this run ended", err=True)
    os._exit(exit_code(0))


def run_flow(flow: Callable[[], object]) -> bool:
    """Run a flow in this process. Uses a local server that responds; otherwise Prefect starts one for the run.

    Args:
        flow: Imports the flow and calls it.

    Returns:
        Whether the end of the flow run could be reported to Prefect.

    Raises:
        RunStopped: No Prefect server responds, or none could be started.
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
            raise RunStopped(f"{os.environ.get('PREFECT_API_URL')}: no Prefect server responds there") from error
        if "ephemeral Prefect API server" not in str(error):
            raise
        raise RunStopped(
            "the Prefect server did not start; prefect server start shows why. If another version of Prefect "
            "created its database, set PREFECT_HOME to a new directory"
        ) from error
    return True


def prefect_api() -> str | None:
    """The API that a flow in this process reports to; None if Prefect starts a server for it.

    Raises InputError if a configured one cannot be used (see `check_api`).
    """
    # The server that Prefect starts for a run needs more than its default 20 s on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
    # Prefect logs a line per task; the terminal shows one per round. The Prefect UI has the others.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    # Training does not need the server: retry for seconds, not minutes, when the end cannot be reported.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")
    url = configured_api()  # reads the settings above, once for this process
    if url is not None:
        check_api(url)
    elif answers(LOCAL_API):
        os.environ["PREFECT_API_URL"] = url = LOCAL_API
    return url
