"""A whole run, or a search for prompts, as one Prefect task whose work is done in another process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from tasks.stage_task import skipped

Work = Callable[..., dict[str, Any]]
"""Called in the other process, with plain values."""


@task(name="unit", task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False, log_prints=False)
def _unit(
    executor: Executor, work: Work, given: tuple[Any, ...], title: str, finished: bool
) -> dict[str, Any] | State[Any]:
    return skipped() if finished else executor.submit(work, *given).result()


def submit(
    executor: Executor, work: Work, given: tuple[Any, ...], title: str, finished: bool
) -> PrefectFuture[Any]:
    """Let a process of `executor` do the work as a task of the flow at hand, unless `finished` says that it stands.

    What the work leaves on disk is what counts: the future only tells when it is there.
    """
    return _unit.submit(executor, work, given, title, finished)
