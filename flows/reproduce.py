"""The flow `reval-reproduce`: figures of the paper in small, or the rest of a reproduction that was interrupted."""

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
from prefect.task_runners import ThreadPoolTaskRunner

from flows.progress import UnitBar, shown_warnings
from flows.units import find_prompts, finish_run, has_prompts, has_start, is_finished, make_start
from reval_core.atomic_files import publish_json
from reval_core.errors import RevalError, RunStopped
from reval_core.reproduction.measures import measure
from reval_core.reproduction.records import Record
from reval_core.reproduction.study import Figure, Unit, check_out, load_figure, units
from reval_core.reproduction.study_page import write_results
from tasks.units import submit

_END_SECONDS = 30.0


# Its threads only wait: how much is done at a time is the process pool's to say.
@flow(name="reval-reproduce", persist_result=False, task_runner=ThreadPoolTaskRunner(max_workers=1000))
def reproduce(
    figures: list[str], seeds: int | None = None, out: str = "reproduction", workers: int | None = None
) -> dict[str, Any]:
    """Make figures, each from its runs, and the page of all figures that are there; give what was found.

    Given again, it makes the runs that are missing and goes on with those that were interrupted. A run that stops
    costs its figure alone: the others are made, and RunStopped names at the end what is missing.
    """
    settings = {name: load_figure(name) for name in figures}
    place = Path(out)
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
            bar.line(name, found[name], time.monotonic() - started)
    if stopped:
        raise RunStopped("; ".join(stopped))
    return found


def _prepare(executor: Executor, figure: Figure, out: Path) -> None:
    """See that the policy that a figure's runs start from is there, and the prompts of a one-prompt study."""
    given = (figure.base, str(out))
    submit(executor, make_start, given, f"policy 0 of {figure.base}", has_start(*given)).result()
    if figure.prompts is not None:
        given = (figure.prompts, str(out))
        submit(executor, find_prompts, given, f"prompts {given[0]}", has_prompts(*given)).result()


def _finish(executor: Executor, planned: list[Unit], out: Path, bar: UnitBar) -> None:
    """See that all runs are finished, several at a time. Arms with the same settings share theirs.

    Where runs stop the others go on, so that the next attempt has less to do. The first error is raised after them.
    """
    futures = []
    for unit in {unit.path: unit for unit in planned}.values():
        settings = unit.config.model_dump(mode="json")
        given = (settings, str(unit.path))
        title = str(unit.path.relative_to(out / "runs"))
        futures.append(submit(executor, finish_run, given, title, is_finished(*given)))
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
    """Processes that do runs, until the end of the block. Where it is left early they end at once: runs go on."""
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
    """Tell processes to end, and end those that do not."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone: a killed reproduction must not hold its runs' folders."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
