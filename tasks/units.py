"""A whole run, or a search for prompts, as one Prefect task whose work is done in another process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from prefect import task
from prefect.futures import PrefectFuture

Work = Callable[..., dict[str, Any]]
"""Called in the other process, with plain values."""


@task(
    name="unit",
    task_run_name="{title}",
    cache_key_fn=lambda context, parameters: parameters["key"],
    persist_result=True,
    log_prints=False,
)
def _unit(executor: Executor, work: Work, given: tuple[Any, ...], title: str, key: str) -> dict[str, Any]:
    return executor.submit(work, *given).result()


def submit(
    executor: Executor, work: Work, given: tuple[Any, ...], title: str, key: str, cache: Path, finished: bool
) -> PrefectFuture[dict[str, Any]]:
    """Let a process of `executor` do the work as a task of the flow at hand.

    Its result is kept in `cache` under `key`, and believed where `finished` says that what the work left stands.
    """
    bound = _unit.with_options(result_storage=cache, refresh_cache=not finished)
    return bound.submit(executor, work, given, title, key)
