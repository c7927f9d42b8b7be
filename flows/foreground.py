"""Runs a flow in the foreground: the same flow as the deployment's, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable

from reval.flows.preparation import PreparedEvaluation, PreparedRun
from reval.flows.server import prefect_api
from reval.flows.streams import exit_code
from reval.flows.terminal import say
from reval_core import launch
from reval_core.atomic_files import read_json
from reval_core.errors import RunStopped
from reval_core.learning import distributed

UNDELIVERED = "the Prefect server stopped responding: its UI does not show how this run ended"


def train_here(run: PreparedRun) -> bool:
    """Train in this process; other processes of `accelerate launch` follow the first one.

    Returns:
        Whether the end of the flow run could be reported to Prefect.

    Raises:
        RunStopped: The run stopped early; the message says why.
    """
    if not launch.is_first():
        distributed.follow(run.directory, run.config)
        return True
    for note in run.notes:
        say(note, err=True)

    def flow() -> None:
        from reval.flows.train import train_prepared

        train_prepared(run)

    delivered = run_flow(flow)
    if not delivered and not run.directory.is_finished(run.config):
        raise RunStopped(
            f"the Prefect server stopped responding; restart it, then run reval resume {run.directory.path}"
        )
    return delivered


def evaluate_here(evaluation: PreparedEvaluation) -> bool:
    """Evaluate in this process. The results are in `evaluation.directory.results`.

    Returns:
        Whether the end of the flow run could be reported to Prefect.

    Raises:
        RunStopped: The evaluation stopped early; the message says why.
    """

    def flow() -> None:
        from reval.flows.evaluate import evaluate_prepared

        evaluate_prepared(evaluation)

    delivered = run_flow(flow)
    path = evaluation.directory.results
    results = read_json(path) if path.exists() else {}
    expected = (evaluation.source.identity, evaluation.protocol.model_dump(mode="json"))
    if (results.get("policy"), results.get("protocol")) != expected:
        raise RunStopped("the Prefect server stopped responding; restart it and repeat the evaluation: it resumes")
    return delivered


def leave_undelivered() -> None:
    """Exit at once, all work being complete: Prefect would retry for minutes to deliver each of its events."""
    say(UNDELIVERED, err=True)
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
    from prefect import tags
    from prefect.settings import PREFECT_API_URL, temporary_settings

    try:
        with temporary_settings({PREFECT_API_URL: url} if url else {}), tags("reval"):
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
