"""`reval demo`: the demo run through a deployment, with its own server and worker if none is running."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from reval.flows.preparation import prepare
from reval.flows.server import server, worker
from reval.flows.terminal import say
from reval_core.config.packaged import PACKAGED
from reval_core.errors import RunStopped

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun, State

CONFIG = PACKAGED / "demo.yaml"


def run_demo() -> None:
    """Run configs/demo.yaml as `prefect deployment run reval-train/default` does, and print its summary.

    Raises RunStopped if the flow run does not complete.
    """
    from reval.flows.show import show_next_steps, show_summary

    directory = prepare(CONFIG, [], None).directory  # the worker's flow run prepares again, in its own process
    say("Starting Prefect …")
    with server() as url, worker():
        _run_deployment(url)
    show_summary(directory, as_json=False)
    show_next_steps(directory)


def _run_deployment(url: str) -> None:
    from prefect.deployments import run_deployment

    # Without a running event loop it is the flow run itself and no coroutine.
    started = cast("FlowRun", run_deployment("reval-train/default", parameters={"config": str(CONFIG)}, timeout=0))
    say(f"Flow run {started.name}: {url.removesuffix('/api')}/runs/flow-run/{started.id}")
    state = _wait(started.id)
    if not state.is_completed():
        raise RunStopped(f"the flow run ended as {state.name}: {state.message}")


def _wait(flow_run_id: UUID) -> State[Any]:
    """The final state of a flow run."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(flow_run_id).state
            if state is not None and state.is_final():
                return state
            time.sleep(0.5)
