"""A stage as a Prefect task: with a readable name, skipped if already published, retried if that can help."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from reval_core.errors import RevalError
from reval_core.stages.stage import Context, Inputs, Stage
from reval_core.storage.tables import Manifest

log = logging.getLogger("reval")

RETRIES = {
    "warm_start": 0,
    "rollouts": 2,
    "verification": 2,
    "consistency": 1,
    "sampling": 1,
    "learning": 1,
    "evaluation": 2,
    "checkpoint": 2,
    "reference_reset": 1,
    "recording": 1,
}
"""How often Prefect retries a stage after an error that is not a RevalError."""


def run_as_task(
    stage: Stage[Context, Inputs], context: Context, round: int, *inputs: Inputs.args, **named: Inputs.kwargs
) -> Manifest:
    """Execute a stage as a Prefect task.

    Prefect stores no result and reads none: it would decode a record with whatever serializer the record names,
    and a run directory may come from an untrusted source. What counts is the manifest that the stage publishes. A
    stage whose manifest and files are valid is not executed again; the Prefect UI shows its task as Cached.
    """
    kept = stage.kept(context, round, *inputs, **named)
    titled = _stage.with_options(
        name=stage.name.replace("_", " "),
        task_run_name=as_template(context.title(stage.name, round)),
        retries=RETRIES[stage.name],
    )
    if kept is not None:
        titled(None)
        return kept
    manifest = titled(partial(stage, context, round, *inputs, **named))
    assert isinstance(manifest, Manifest), "a task that was not skipped returns what its stage returns"
    return manifest


def as_template(title: str) -> str:
    """A Prefect template that renders as this title, which may contain a user's file name."""
    return title.replace("{", "{{").replace("}", "}}")


def skipped() -> State[None]:
    """The state of a task that has nothing to do: Prefect displays it like a result of its own cache."""
    return Completed(name="Cached")


def _worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a retry may help: not after reval's own errors."""
    try:
        state.result()
    except RevalError:
        return False
    except Exception as error:
        log.warning("%s failed (%s: %s); retrying", run.name, type(error).__name__, error)
    return True


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_delay_seconds=5,
    retry_condition_fn=_worth_retrying,
    log_prints=False,
)
def _stage(work: Callable[[], Manifest] | None) -> Manifest | State[None]:
    """A stage's work; None if there is nothing to do."""
    return skipped() if work is None else work()
