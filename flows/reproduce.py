"""The flow `reval-reproduce`: reproduces figures of the paper at a small scale, or resumes where interrupted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.futures import as_completed
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from reval.flows.deployed import FLOW, final_errors, turn
from reval.flows.progress import UnitBar
from reval.flows.reproduction_runs import (
    find_prompts,
    finish_run,
    has_prompts,
    has_start,
    is_finished,
    make_start,
)
from reval.flows.terminal import shown_warnings
from reval.tasks.process_task import submit
from reval_core.atomic_files import publish_json
from reval_core.errors import RevalError, RunStopped
from reval_core.reproduction.measures import measure
from reval_core.reproduction.records import Record
from reval_core.reproduction.study import Figure, Unit, check_out, load_figure, units
from reval_core.reproduction.study_page import write_results

_END_SECONDS = 30.0


_WAITING: Any = ThreadPoolTaskRunner(max_workers=1000)  # Prefect declares `task_runner` for another future
"""The threads only wait: the process pool limits how many runs execute in parallel."""


def _name() -> str:
    """The name of a flow run: its directory."""
    return str(flow_run.parameters.get("out", "reproduction"))


@flow(name="reval-reproduce", flow_run_name=_name, task_runner=_WAITING, **FLOW)
def reproduce(
    figures: list[str], seeds: int | None = None, out: str = "reproduction", workers: int | None = None
) -> dict[str, Any]:
    """Reproduce figures, each from its runs, write the page of all available figures, and return the results.

    The same call again executes the missing runs and resumes interrupted ones. A run that stops affects only its
    figure: the others are completed, and RunStopped lists at the end what is missing.

    Args:
        figures: Names of figures.
        seeds: Runs of each arm; None for the figure's own number.
        out: The directory of the runs and the page.
        workers: Parallel runs; None for the number of cores.
    """
    with final_errors(), turn(Path(out)):
        return _reproduce(figures, seeds, Path(out), workers)


def _reproduce(figures: list[str], seeds: int | None, place: Path, workers: int | None) -> dict[str, Any]:
    settings = {name: load_figure(name) for name in figures}
    check_out(place)
    found, stopped = {}, []
    with shown_warnings(), _processes(workers or os.cpu_count() or 1) as executor, UnitBar() as bar:
        for name, figure in settings.items():
            started = time.monotonic()
            planned = units(figure, place, seeds)
            try:
                _prepare(executor, figure, place)
                bar.begin(name, len({unit.path for unit in planned}))
                _finish(executor, planned, place, bar)
            except RevalError as error:
                stopped.append(f"{name}: {error}")
                continue
            found[name] = measure(name, figure, [Record(unit) for unit in planned])
            publish_json(place / "figures" / f"{name}.json", found[name])
            write_results(place)
            bar.result(name, found[name], time.monotonic() - started)
    if stopped:
        raise RunStopped("; ".join(stopped))
    return found


def _prepare(executor: Executor, figure: Figure, out: Path) -> None:
    """Ensure that the initial policy of a figure's runs exists, and the prompts of a one-prompt study."""
    base, prompts, place = figure.base, figure.prompts, str(out)
    if not has_start(base, place):
        submit(executor, f"initial policy of {base}", make_start, base, place).result()
    if prompts is not None and not has_prompts(prompts, place):
        submit(executor, f"prompts {prompts}", find_prompts, prompts, place).result()


def _finish(executor: Executor, planned: list[Unit], out: Path, bar: UnitBar) -> None:
    """Finish all runs, several in parallel. Arms with the same settings share their runs.

    If runs stop, the others continue, so that the next attempt has less to do. The first error is raised last.
    """
    futures = []
    for unit in {unit.path: unit for unit in planned}.values():
        settings, path = unit.config.model_dump(mode="json"), str(unit.path)
        if is_finished(settings, path):
            bar.step()
            continue
        title = str(unit.path.relative_to(out / "runs"))
        futures.append(submit(executor, title, finish_run, settings, path))
    errors = []
    for future in as_completed(futures):
        try:
            future.result()
        except RevalError as error:
            errors.append(error)
        bar.step()
    if errors:
        raise errors[0]


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    """Worker processes for the runs. If the block is left by an exception they end at once: runs can resume."""
    executor = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_leave_with, initargs=(os.getpid(),)
    )
    try:
        yield executor
    except BaseException:
        _end(active_children())
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _end(processes: list[BaseProcess]) -> None:
    """Terminate processes, and kill those that do not end in time."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()


def _leave_with(parent: int) -> None:
    """Exit when the parent is gone: a killed reproduction must not keep the locks of its runs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
