"""A whole run, or a search for prompts, as one Prefect task that executes in another process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, ParamSpec

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

Inputs = ParamSpec("Inputs")
Summary = dict[str, Any]


@task(name="unit", task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False, log_prints=False)
def _unit(executor: Executor, work: Callable[[], Summary], title: str) -> Summary:
    return executor.submit(work).result()


def submit(
    executor: Executor,
    title: str,
    work: Callable[Inputs, Summary],
    *inputs: Inputs.args,
    **named: Inputs.kwargs,
) -> PrefectFuture[Summary]:
    """Execute work in a process of `executor`, as a task of the current flow.

    The result is what the work writes to disk: the future only signals its completion. Work and inputs are pickled.
    """
    return _unit.submit(executor, partial(work, *inputs, **named), title)
