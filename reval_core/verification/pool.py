"""Tasks for worker processes, each with a deadline, and none at the cost of the others."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, Generic, Protocol, TypeVar

from reval_core.verification.crew import Nursery, VerifierUnavailable, Worker

_STARTS_BEFORE_GIVING_UP = 3
# sympy's caches grow by about 5 KB a task; a worker is renewed before they matter.
_TASKS_PER_WORKER = 5000
# So many slow workers may be set aside at a time, for each that works.
_ASIDE_PER_WORKER = 4
# The share of the workers' time that slow tasks without an end may take before slow ones are set aside.
_SLOW_SHARE = 0.03
_LOOK_AGAIN_SECONDS = 0.1


class Task(Protocol):
    """A piece of work. Equal tasks are the same work."""

    def message(self) -> dict[str, Any]:
        """What a worker is told, as JSON takes it."""
        ...

    def __hash__(self) -> int: ...


AnyTask = TypeVar("AnyTask", bound=Task)


class Pool(Generic[AnyTask]):
    """Worker processes that are started at the first task and kept warm.

    Calls from several threads take turns. A process that is forked from this one starts workers of its own.

    Args:
        job: what the workers are for (see `reval_core.verification.nursery`).
        workers: how many work at a time.
        timeout_seconds: wall time for one task, from the moment an idle worker is handed it.
        memory_mb: address space of a worker in MiB.
    """

    def __init__(self, job: dict[str, Any], workers: int, timeout_seconds: float, memory_mb: int) -> None:
        self._job = job
        self._workers = workers
        self._timeout_seconds = timeout_seconds
        self._memory_mb = memory_mb
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._nursery: Nursery | None = None
        self._crew: list[Worker[AnyTask]] = []
        self._failed_starts = 0

    def run(self, tasks: Sequence[AnyTask]) -> Generator[tuple[AnyTask, dict[str, Any], float], None, None]:
        """Each task with what its worker reported and the milliseconds that it took, as they are done.

        A task that runs late is reported with the verdict ``timeout``, one that kills its worker with ``error``.

        Raises:
            VerifierUnavailable: workers do not start.
        """
        self._leave_to_parent()
        queue = deque(tasks)
        with self._lock:
            left = len(queue)
            clock = _SlowClock(self._workers, self._timeout_seconds)
            try:
                while left:
                    self._staff(queue)
                    self._hand_out(queue)
                    self._set_slow_aside(queue, clock)
                    for found in self._collect(bool(queue), clock):
                        left -= 1
                        yield found
            finally:
                if left:
                    # An interrupted call must not leave answers behind for the next one.
                    self._disband()

    def close(self) -> None:
        """End the workers and wait until they are gone. A later `run` would start new ones."""
        self._leave_to_parent()
        with self._lock:
            self._disband()

    def _leave_to_parent(self) -> None:
        """In a forked process: forget the workers, which are the other process's."""
        if self._owner != os.getpid():
            for worker in self._crew:
                worker.connection.close()
            if self._nursery:
                self._nursery.abandon()
            self._begin()

    def _disband(self) -> None:
        nursery, self._nursery = self._nursery, None
        for worker in self._crew:
            worker.connection.close()
        self._crew.clear()
        if nursery:
            nursery.close()

    def _staff(self, queue: deque[AnyTask]) -> None:
        """Start workers, as many as have something to do. One that is set aside leaves its seat to another."""
        seated = [worker for worker in self._crew if not worker.aside]
        busy = sum(worker.task is not None for worker in seated)
        for _ in range(min(self._workers, busy + len(queue)) - len(seated)):
            if self._nursery is None:
                self._nursery = Nursery(self._job, self._memory_mb, self._timeout_seconds)
            try:
                self._crew.append(Worker(self._nursery, self._timeout_seconds))
            except OSError:  # someone has killed it
                self._nursery.close()
                self._nursery = None
                self._note_start(failed=True)

    def _hand_out(self, queue: deque[AnyTask]) -> None:
        for worker in list(self._crew):
            if queue and worker.ready and worker.task is None:
                try:
                    worker.take(queue[0], queue[0].message())
                except OSError:  # it died idle: no task is to blame
                    self._dismiss(worker)
                else:
                    queue.popleft()

    def _set_slow_aside(self, queue: deque[AnyTask], clock: _SlowClock) -> None:
        """While others wait, give the seats of slow workers to new ones, unless slow work is rare."""
        if not queue:
            return
        slow = {worker: seconds for worker in self._crew if (seconds := worker.slow_seconds) > 0}
        room = _ASIDE_PER_WORKER * self._workers - sum(worker.aside for worker in self._crew)
        if room > 0 and slow and not clock.allows(sum(slow.values())):
            for worker in list(slow)[:room]:
                clock.add(slow[worker])
                worker.set_aside()
            self._staff(queue)

    def _collect(self, waiting: bool, clock: _SlowClock) -> Iterator[tuple[AnyTask, dict[str, Any], float]]:
        """Wait until a worker reports, dies or runs late, and say what became of its task."""
        if not self._crew:
            return
        patience = min(worker.deadline for worker in self._crew) - time.monotonic()
        if waiting:
            patience = min(patience, _LOOK_AGAIN_SECONDS)
        reporting = wait([worker.connection for worker in self._crew], max(0.0, patience))
        for worker in list(self._crew):
            if worker.connection in reporting:
                report = worker.report()
            elif time.monotonic() >= worker.deadline and not worker.connection.poll():
                report = {"verdict": "timeout"}
            else:
                continue
            task, milliseconds = worker.task, worker.milliseconds
            slow_seconds = worker.slow_seconds
            ended = report.get("verdict") in ("timeout", "error") and "message" not in report
            if ended:  # one that comes to an end was worth its time
                clock.add(slow_seconds)
            if not worker.ready:
                self._note_start(failed=ended)
            if ended or worker.aside or worker.done + 1 >= _TASKS_PER_WORKER:
                self._dismiss(worker)
            else:
                worker.rest()
            if task is not None:
                yield task, report, milliseconds

    def _note_start(self, failed: bool) -> None:
        self._failed_starts = self._failed_starts + 1 if failed else 0
        if self._failed_starts == _STARTS_BEFORE_GIVING_UP:
            self._failed_starts = 0
            raise VerifierUnavailable(
                f"{_STARTS_BEFORE_GIVING_UP} verification workers in a row died or were not ready in time; "
                "raise memory_mb"
            )

    def _dismiss(self, worker: Worker[AnyTask]) -> None:
        self._crew.remove(worker)
        worker.end()


class _SlowClock:
    """How much of one call's time slow tasks have taken at full priority without coming to an end."""

    def __init__(self, workers: int, timeout_seconds: float) -> None:
        self._workers = workers
        self._timeout_seconds = timeout_seconds
        self._started = time.monotonic()
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """A slow task ran late, or is set aside."""
        self._seconds += seconds

    def allows(self, running_seconds: float) -> bool:
        """Whether slow tasks may go on: a few always, so that honest ones among easy ones have all their time."""
        elapsed = time.monotonic() - self._started
        return self._seconds + running_seconds <= self._timeout_seconds + _SLOW_SHARE * self._workers * elapsed
