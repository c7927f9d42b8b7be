"""A stage as a Prefect task: named for people, cached in the run's own folder, retried where that can help."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from reval_core.errors import RevalError
from reval_core.facts import Manifest
from reval_core.stages import Stage
from reval_core.stages.stage import Host

log = logging.getLogger("reval")

StageCall = Callable[..., Manifest]
"""(session, round, *inputs) -> the stage's manifest."""


def as_task(stage: Stage, retries: int = 0) -> StageCall:
    """The stage as a Prefect task, called like the stage itself.

    The task's result is the stage's manifest as JSON. It is kept in the run's folder under the stage's key, so a
    finished stage is skipped after a crash and no run reads another's. A result whose files are gone is not
    believed: the stage runs again.
    """

    @task(
        name=stage.name.replace("_", " "),
        cache_key_fn=lambda context, parameters: parameters["key"],
        persist_result=True,
        retries=retries,
        retry_delay_seconds=5,
        retry_condition_fn=_worth_retrying,
        log_prints=False,
    )
    def run(session: Host, round: int, inputs: tuple[Any, ...], key: str) -> dict[str, Any]:
        return stage(session, round, *inputs).to_json()

    def call(session: Host, round: int, *inputs: Any) -> Manifest:
        kept = stage.kept(session, round, *inputs)
        bound = run.with_options(
            task_run_name=as_template(session.title(stage.name, round)),
            result_storage=session.folder.cache,
            refresh_cache=kept is None,
        )
        result = bound(session, round, inputs, stage.key(session, round, *inputs))
        # Of what was kept Prefect's copy is for its page; what was read from the disk just now is what counts.
        return kept or Manifest.from_json(result)

    return call


def as_template(title: str) -> str:
    """A template of Prefect's that gives this title, which may hold the name of a user's file."""
    return title.replace("{", "{{").replace("}", "}}")


def _worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether another try may go better: not if reval itself said no."""
    try:
        state.result()
    except RevalError:
        return False
    except Exception as error:
        log.warning("%s failed (%s: %s); trying again", run.name, type(error).__name__, error)
    return True
