"""A stage as a Prefect task: with a readable name, only if it has work to do, retried if that can help."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
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
    """Execute a stage as a Prefect task, unless it is published already.

    Prefect stores no result and reads none: it would decode a record with whatever serializer the record names,
    and a run directory may come from an untrusted source. What counts is the manifest that the stage publishes. A
    stage whose manifest and files are valid has no task run: a resume creates none for past rounds.
    """
    kept = stage.kept(context, round, *inputs, **named)
    if kept is not None:
        return kept
    titled = _stage.with_options(
        name=stage.name.replace("_", " "),
        task_run_name=as_template(context.title(stage.name, round)),
        retries=RETRIES[stage.name],
    )
    return titled(partial(stage, context, round, *inputs, **named))


def as_template(title: str) -> str:
    """A Prefect template that renders as this title, which may contain a user's file name."""
    return title.replace("{", "{{").replace("}", "}}")


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
def _stage(work: Callable[[], Manifest]) -> Manifest:
    """A stage's work."""
    return work()
