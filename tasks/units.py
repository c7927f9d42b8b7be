"""A whole run, or a search for prompts, as one Prefect task that executes in another process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from reval.tasks.stage_task import skipped

Work = Callable[..., dict[str, Any]]
"""Called in the other process, with picklable arguments."""


@task(name="unit", task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False, log_prints=False)
def _unit(
    executor: Executor, work: Work, given: tuple[Any, ...], title: str, finished: bool
) -> dict[str, Any] | State[Any]:
    return skipped() if finished else executor.submit(work, *given).result()


def submit(
    executor: Executor, work: Work, given: tuple[Any, ...], title: str, finished: bool
) -> PrefectFuture[Any]:
    """Execute work in a process of `executor`, as a task of the current flow, unless it is `finished`.

    The result is what the work writes to disk: the future only signals its completion.
    """
    return _unit.submit(executor, work, given, title, finished)
