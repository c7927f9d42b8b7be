"""A flow run that has its parameters alone: its turn on a directory, and which errors are worth a retry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRunPolicy
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run

from reval_core.atomic_files import digest
from reval_core.errors import RevalError

FLOW: dict[str, Any] = {
    # After an error that is not a RevalError. A failing stage is retried on its own before: these are for what
    # fails between stages. A minute lets a file server or a database come back.
    "retries": 2,
    "retry_delay_seconds": 60,
    # A flow run that takes longer counts as hung, as when it waits for a dead mount. Its retry resumes from the
    # last completed stage, so a longer run loses one stage a week.
    "timeout_seconds": 7 * 86400,
    # Nothing is stored (docs/decisions/0026-no-stored-results.md), and never as a pickle where a user changes that.
    "persist_result": False,
    "result_serializer": "json",
}
"""The options of every flow."""

ATTENDED: dict[str, Any] = {"retries": 0, "timeout_seconds": 0}
"""The options of a flow in the foreground: its user sees errors at once, and can interrupt it."""

_LEASE_SECONDS = 60.0
"""How long a turn outlives a killed flow run. A living one renews it."""


@contextmanager
def final_errors() -> Iterator[None]:
    """Context manager in which a RevalError ends the flow run at once: a retry would end the same way."""
    try:
        yield
    except RevalError:
        _retry_no_more()
        raise


@contextmanager
def turn(directory: Path) -> Iterator[None]:
    """Context manager for a flow run's turn on a directory: waits until no other flow run of the server has it.

    Flow runs without a deployment do not wait: the lock of the directory refuses a second one, and their server may
    end with them. If the server cannot be reached later, the turn is lost and the work continues under that lock.
    """
    if deployment.id is None:
        yield
        return
    name = limit_name(directory)
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):  # another flow run was faster
            client.upsert_global_concurrency_limit_by_name(name, 1)
        if client.read_global_concurrency_limit_by_name(name).active_slots:
            get_run_logger().warning("%s: waiting for another flow run (concurrency limit %s)", directory, name)
    with concurrency(name, lease_duration=_LEASE_SECONDS):
        yield


def limit_name(directory: Path) -> str:
    """The name of a directory's concurrency limit: readable, unique, and valid for Prefect."""
    path = directory.resolve()
    readable = re.sub(r"[^A-Za-z0-9._-]", "-", path.name)[:40]
    return f"reval-{readable}-{digest(str(path))[:12]}"


def _retry_no_more() -> None:
    """Withdraw the retries of the current flow run."""
    identity = flow_run.id
    if identity is None:
        return
    with suppress(httpx.TransportError), get_client(sync_client=True) as client:
        client.update_flow_run(identity, empirical_policy=FlowRunPolicy(retries=0))
