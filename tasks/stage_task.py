"""A stage as a Prefect task: with a readable name, skipped if already published, retried if that can help."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from reval_core.errors import RevalError
from reval_core.pipeline.stage_context import StageContext
from reval_core.stages import Stage
from reval_core.storage.tables import Manifest

log = logging.getLogger("reval")

StageCall = Callable[..., Manifest]
"""(context, round, *inputs) -> the stage's manifest."""


def as_task(stage: Stage, retries: int = 0) -> StageCall:
    """The stage as a Prefect task, called like the stage itself.

    Prefect stores no result and reads none: it would decode a record with whatever serializer the record names,
    and a run directory may come from an untrusted source. What counts is the manifest that the stage publishes. A
    stage whose manifest and files are valid is not executed again; the Prefect UI shows its task as Cached.

    Args:
        stage: The stage.
        retries: How often Prefect retries it after an error that is not a RevalError.
    """

    @task(
        name=stage.name.replace("_", " "),
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=5,
        retry_condition_fn=_worth_retrying,
        log_prints=False,
    )
    def run(
        context: StageContext, round: int, inputs: tuple[Any, ...], kept: Manifest | None
    ) -> Manifest | State[Any]:
        return stage(context, round, *inputs) if kept is None else skipped()

    def call(context: StageContext, round: int, *inputs: Any) -> Manifest:
        kept = stage.kept(context, round, *inputs)
        named = run.with_options(task_run_name=as_template(context.title(stage.name, round)))
        made = named(context, round, inputs, kept)
        return made if isinstance(made, Manifest) else cast("Manifest", kept)

    return call


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
