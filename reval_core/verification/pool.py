"""A pool of worker processes in which each task has its own deadline and cannot affect other tasks."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Generic, Protocol, TypeVar

from reval_core.verification.workers import ForkServer, VerifierUnavailable, Worker

_MAX_FAILED_STARTS = 3
# sympy's caches grow by about 5 KB per task; workers are replaced before that matters.
_TASKS_PER_WORKER = 5000
_POLL_SECONDS = 0.1
# A step may start the fork server and end all workers.
_CLOSE_SECONDS = 600.0


class Task(Protocol):
    """A unit of work. Equal tasks are done once."""

    def message(self) -> dict[str, Any]:
        """The message to a worker; serializable as JSON."""
        ...

    def __hash__(self) -> int: ...


AnyTask = TypeVar("AnyTask", bound=Task)
TaskResult = tuple[AnyTask, dict[str, Any], float]
"""A task, its worker's report, and its wall time in milliseconds."""


class _Call(Generic[AnyTask]):
    """One call of `run`: its unfinished tasks, those that are not assigned, and results not yet consumed."""

    def __init__(self, tasks: Sequence[AnyTask]) -> None:
        self.open = dict.fromkeys(tasks)
        self.waiting = deque(self.open)
        self.results: deque[TaskResult[AnyTask]] = deque()
        self.is_waiting = False
        """Whether its caller is waiting for a result now. Tasks are only assigned for callers that wait."""
        self.closed = False
        """Whether it was abandoned or the pool was closed."""

    def requeue(self) -> None:
        """Queue all unfinished tasks again, after the workers have been stopped."""
        self.waiting = deque(self.open)


@dataclass(frozen=True)
class _Assignment(Generic[AnyTask]):
    """What a worker is busy with: a task and the call that it belongs to."""

    call: _Call[AnyTask]
    task: AnyTask


class Pool(Generic[AnyTask]):
    """Worker processes that are started with the first task and kept alive.

    Calls from several threads share the workers. One of the waiting threads is the leader: it does the pool's work
    for all of them, one step at a time. Between two results a call holds no lock or worker that others wait for. A
    process that is forked from this one starts workers of its own.

    Args:
        job: The job of the workers (see `reval_core.verification.forkserver`).
        workers: The maximum number of workers.
        timeout_seconds: The deadline of a task, from the moment it is assigned to a worker (see `Worker.late`).
        memory_mb: The address-space limit of a worker in MiB.
    """

    def __init__(self, job: dict[str, Any], workers: int, timeout_seconds: float, memory_mb: int) -> None:
        self._job = job
        self._max_workers = workers
        self._timeout_seconds = timeout_seconds
        self._memory_mb = memory_mb
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        # Reentrant: the garbage collector may finalize an abandoned call while its thread holds the lock.
        self._condition = threading.Condition(threading.RLock())
        self._leader: _Call[AnyTask] | None = None
        self._calls: list[_Call[AnyTask]] = []
        self._fork_server: ForkServer | None = None
        self._workers: list[Worker[_Assignment[AnyTask]]] = []
        self._failed_starts = 0

    def run(self, tasks: Sequence[AnyTask]) -> Generator[TaskResult[AnyTask], None, None]:
        """Yield the result of each task as it finishes.

        A task that exceeds its deadline is reported with the verdict ``timeout``. A task that kills its worker, or
        whose worker sends an invalid report, is reported with ``error``.

        Raises:
            VerifierUnavailable: Workers cannot be started, or the pool was closed meanwhile.
        """
        self._detach_after_fork()
        call = _Call(tasks)
        self._calls.append(call)
        try:
            while call.open or call.results:
                yield self._next(call)
        finally:
            self._withdraw(call)

    def close(self) -> None:
        """Stop the workers and wait until they have ended. A later `run` starts new ones.

        Calls that are waiting in other threads raise VerifierUnavailable.
        """
        self._detach_after_fork()
        with self._condition:
            for call in self._calls:
                call.closed = True
            self._condition.wait_for(lambda: self._leader is None, _CLOSE_SECONDS)
            self._stop_workers()

    def _detach_after_fork(self) -> None:
        """In a forked process, drop the workers and the calls, which belong to the parent process."""
        if self._owner != os.getpid():
            for call in self._calls:
                call.closed = True
            for worker in self._workers:
                worker.connection.close()
            if self._fork_server:
                self._fork_server.abandon()
            self._begin()

    def _next(self, call: _Call[AnyTask]) -> TaskResult[AnyTask]:
        """Wait for the next result of this call."""
        self._detach_after_fork()
        call.is_waiting = True
        try:
            while not call.results:
                if call.closed:
                    raise VerifierUnavailable("the verifier was closed before all responses were judged")
                self._lead_or_wait(call)
        finally:
            call.is_waiting = False
        return call.results.popleft()

    def _lead_or_wait(self, call: _Call[AnyTask]) -> None:
        """Do one step of the pool's work, or wait for the thread that is doing it."""
        try:
            with self._condition:
                if self._leader is None:
                    self._leader = call
                else:
                    self._condition.wait(_POLL_SECONDS)
            if self._leader is call:
                self._step()
        except BaseException:
            if self._leader is call:  # interrupted at an arbitrary point: the workers' state is unknown
                self._stop_workers()
            raise
        finally:
            with self._condition:
                if self._leader is call:
                    self._leader = None
                    self._condition.notify_all()

    def _withdraw(self, call: _Call[AnyTask]) -> None:
        """Remove a call that has ended. Workers that are busy with it end now or in the leader's next step."""
        self._detach_after_fork()
        call.closed = True
        with self._condition:
            if call in self._calls:
                self._calls.remove(call)
            if self._leader is None:
                self._end_abandoned()

    def _stop_workers(self) -> None:
        fork_server, self._fork_server = self._fork_server, None
        abandoned, self._workers = self._workers, []
        for worker in abandoned:
            worker.connection.close()
        for call in self._calls:
            call.requeue()
        if fork_server:
            fork_server.close()

    def _step(self) -> None:
        """Assign queued tasks, then handle workers that have reported, have died or are late."""
        self._end_abandoned()
        waiting = [call for call in list(self._calls) if call.is_waiting and call.waiting and not call.closed]
        self._start_workers(sum(len(call.waiting) for call in waiting))
        self._assign_tasks(waiting)
        self._collect()

    def _end_abandoned(self) -> None:
        for worker in list(self._workers):
            if worker.task is not None and worker.task.call.closed:
                self._remove(worker)

    def _start_workers(self, waiting: int) -> None:
        """Start as many workers as there is work for, up to the limit."""
        busy = sum(worker.task is not None for worker in self._workers)
        for _ in range(min(self._max_workers, busy + waiting) - len(self._workers)):
            if self._fork_server is None:
                self._fork_server = ForkServer(self._job, self._memory_mb, self._timeout_seconds)
            try:
                self._workers.append(Worker(self._fork_server, self._timeout_seconds))
            except OSError:  # the fork server was killed
                self._fork_server.close()
                self._fork_server = None
                self._record_start(failed=True)

    def _assign_tasks(self, waiting: Sequence[_Call[AnyTask]]) -> None:
        """Assign a task to every idle worker, from the call with the fewest workers."""
        for worker in list(self._workers):
            calls = [call for call in waiting if call.waiting]
            if calls and worker.ready and worker.task is None:
                call = min(calls, key=self._workers_of)
                task = call.waiting[0]
                try:
                    worker.assign(_Assignment(call, task), task.message())
                except OSError:  # it died while idle: no task is the cause
                    self._remove(worker)
                else:
                    call.waiting.popleft()

    def _workers_of(self, call: _Call[AnyTask]) -> int:
        return sum(worker.task is not None and worker.task.call is call for worker in self._workers)

    def _collect(self) -> None:
        """Wait briefly for reports and record the result of each task that has finished."""
        if not self._workers:
            return
        timeout = min(_POLL_SECONDS, *(worker.seconds_until_late for worker in self._workers))
        reporting = wait([worker.connection for worker in self._workers], timeout)
        for worker in list(self._workers):
            report = worker.report() if worker.connection in reporting else None
            if report is None and worker.late:
                report = worker.report() or {"verdict": "timeout"}
            if report is not None:
                self._record(worker, report)

    def _record(self, worker: Worker[_Assignment[AnyTask]], report: dict[str, Any]) -> None:
        assignment, milliseconds = worker.task, worker.milliseconds
        ended = report.get("verdict") in ("timeout", "error") and "message" not in report
        if not worker.ready:
            self._record_start(failed=ended)
        worker.become_idle()
        if ended or worker.tasks_done >= _TASKS_PER_WORKER:
            self._remove(worker)
        if assignment is not None and assignment.task in assignment.call.open:
            assignment.call.results.append((assignment.task, report, milliseconds))
            del assignment.call.open[assignment.task]

    def _record_start(self, failed: bool) -> None:
        self._failed_starts = self._failed_starts + 1 if failed else 0
        if self._failed_starts == _MAX_FAILED_STARTS:
            self._failed_starts = 0
            raise VerifierUnavailable(
                f"{_MAX_FAILED_STARTS} consecutive verification workers died or were not ready in time; "
                "raise memory_mb"
            )

    def _remove(self, worker: Worker[_Assignment[AnyTask]]) -> None:
        self._workers.remove(worker)
        worker.end()
