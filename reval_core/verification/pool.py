"""Tasks for worker processes, each with a deadline, and none at the cost of the others."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Generic, Protocol, TypeVar

from reval_core.verification.workers import ForkServer, VerifierUnavailable, Worker

_STARTS_BEFORE_GIVING_UP = 3
# sympy's caches grow by about 5 KB a task; a worker is renewed before they matter.
_TASKS_PER_WORKER = 5000
_LOOK_AGAIN_SECONDS = 0.1
# A step may start the process that workers are forked from and end all workers.
_CLOSE_SECONDS = 600.0


class Task(Protocol):
    """A piece of work. Equal tasks are the same work."""

    def message(self) -> dict[str, Any]:
        """What a worker is told, as JSON takes it."""
        ...

    def __hash__(self) -> int: ...


AnyTask = TypeVar("AnyTask", bound=Task)
Found = tuple[AnyTask, dict[str, Any], float]
"""A task, what its worker reported, and the milliseconds that it took."""


class _Call(Generic[AnyTask]):
    """One `run`: its tasks without a report, those of them that no worker has, and reports not yet taken."""

    def __init__(self, tasks: Sequence[AnyTask]) -> None:
        self.open = dict.fromkeys(tasks)
        self.waiting = deque(self.open)
        self.found: deque[Found[AnyTask]] = deque()
        self.listens = False
        """Whether its caller waits for a report now. Nothing is handed out for one that does not."""
        self.over = False
        """Whether it was given up, or the pool was closed."""

    def wait_again(self) -> None:
        """The workers are gone: whatever has no report needs another."""
        self.waiting = deque(self.open)


@dataclass(frozen=True)
class _Errand(Generic[AnyTask]):
    """What a worker is busy with: a task, and the call that asked for it."""

    call: _Call[AnyTask]
    task: AnyTask


class Pool(Generic[AnyTask]):
    """Worker processes that are started at the first task and kept warm.

    Calls from several threads share the workers: one of the threads that wait leads, which means that it does the
    pool's work for all of them, one step at a time. Between two reports a call holds nothing that others wait for.
    A process that is forked from this one starts workers of its own.

    Args:
        job: what the workers are for (see `reval_core.verification.forkserver`).
        workers: how many work at a time.
        timeout_seconds: for one task, from the moment an idle worker is handed it (see `crew.Worker.late`).
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
        # Reentrant: the garbage collector may end a forgotten call while its thread holds this for another.
        self._condition = threading.Condition(threading.RLock())
        self._leader: _Call[AnyTask] | None = None
        self._calls: list[_Call[AnyTask]] = []
        self._fork_server: ForkServer | None = None
        self._crew: list[Worker[_Errand[AnyTask]]] = []
        self._failed_starts = 0

    def run(self, tasks: Sequence[AnyTask]) -> Generator[Found[AnyTask], None, None]:
        """Each task with what its worker reported and the milliseconds that it took, as they are done.

        A task that runs late is reported with the verdict ``timeout``. One that kills its worker, or whose worker
        sends anything that is no report, is reported with ``error``.

        Raises:
            VerifierUnavailable: workers do not start, or the pool is closed meanwhile.
        """
        self._leave_to_parent()
        call = _Call(tasks)
        self._calls.append(call)
        try:
            while call.open or call.found:
                yield self._next(call)
        finally:
            self._withdraw(call)

    def close(self) -> None:
        """End the workers and wait until they are gone. A later `run` would start new ones.

        Calls that wait in other threads raise VerifierUnavailable.
        """
        self._leave_to_parent()
        with self._condition:
            for call in self._calls:
                call.over = True
            self._condition.wait_for(lambda: self._leader is None, _CLOSE_SECONDS)
            self._disband()

    def _leave_to_parent(self) -> None:
        """In a forked process: forget the workers and the calls, which are the other process's."""
        if self._owner != os.getpid():
            for call in self._calls:
                call.over = True
            for worker in self._crew:
                worker.connection.close()
            if self._fork_server:
                self._fork_server.abandon()
            self._begin()

    def _next(self, call: _Call[AnyTask]) -> Found[AnyTask]:
        """Wait for the next report on a task of this call."""
        self._leave_to_parent()
        call.listens = True
        try:
            while not call.found:
                if call.over:
                    raise VerifierUnavailable("the verifier was closed before everything was judged")
                self._lead(call)
        finally:
            call.listens = False
        return call.found.popleft()

    def _lead(self, call: _Call[AnyTask]) -> None:
        """Do one step of the pool's work; while another thread does, wait for what comes of it."""
        try:
            with self._condition:
                if self._leader is None:
                    self._leader = call
                else:
                    self._condition.wait(_LOOK_AGAIN_SECONDS)
            if self._leader is call:
                self._step()
        except BaseException:
            if self._leader is call:  # interrupted anywhere: no worker's state is known
                self._disband()
            raise
        finally:
            with self._condition:
                if self._leader is call:
                    self._leader = None
                    self._condition.notify_all()

    def _withdraw(self, call: _Call[AnyTask]) -> None:
        """Forget a call that has ended. Workers that are busy for it end now, or in the leader's next step."""
        self._leave_to_parent()
        call.over = True
        with self._condition:
            if call in self._calls:
                self._calls.remove(call)
            if self._leader is None:
                self._end_abandoned()

    def _disband(self) -> None:
        fork_server, self._fork_server = self._fork_server, None
        crew, self._crew = self._crew, []
        for worker in crew:
            worker.connection.close()
        for call in self._calls:
            call.wait_again()
        if fork_server:
            fork_server.close()

    def _step(self) -> None:
        """Hand out what waits, then see to the workers that have reported, have died or are late."""
        self._end_abandoned()
        waiting = [call for call in list(self._calls) if call.listens and call.waiting and not call.over]
        self._staff(sum(len(call.waiting) for call in waiting))
        self._hand_out(waiting)
        self._collect()

    def _end_abandoned(self) -> None:
        for worker in list(self._crew):
            if worker.task is not None and worker.task.call.over:
                self._dismiss(worker)

    def _staff(self, waiting: int) -> None:
        """Start workers, as many as have something to do."""
        busy = sum(worker.task is not None for worker in self._crew)
        for _ in range(min(self._workers, busy + waiting) - len(self._crew)):
            if self._fork_server is None:
                self._fork_server = ForkServer(self._job, self._memory_mb, self._timeout_seconds)
            try:
                self._crew.append(Worker(self._fork_server, self._timeout_seconds))
            except OSError:  # someone has killed it
                self._fork_server.close()
                self._fork_server = None
                self._note_start(failed=True)

    def _hand_out(self, waiting: Sequence[_Call[AnyTask]]) -> None:
        """Give every idle worker a task, of the call that has the fewest workers."""
        for worker in list(self._crew):
            calls = [call for call in waiting if call.waiting]
            if calls and worker.ready and worker.task is None:
                call = min(calls, key=self._workers_of)
                task = call.waiting[0]
                try:
                    worker.take(_Errand(call, task), task.message())
                except OSError:  # it died idle: no task is to blame
                    self._dismiss(worker)
                else:
                    call.waiting.popleft()

    def _workers_of(self, call: _Call[AnyTask]) -> int:
        return sum(worker.task is not None and worker.task.call is call for worker in self._crew)

    def _collect(self) -> None:
        """Wait a moment for reports, and note what became of each task that has ended."""
        if not self._crew:
            return
        patience = min(_LOOK_AGAIN_SECONDS, *(worker.patience for worker in self._crew))
        reporting = wait([worker.connection for worker in self._crew], patience)
        for worker in list(self._crew):
            report = worker.report() if worker.connection in reporting else None
            if report is None and worker.late:
                report = worker.report() or {"verdict": "timeout"}
            if report is not None:
                self._note(worker, report)

    def _note(self, worker: Worker[_Errand[AnyTask]], report: dict[str, Any]) -> None:
        errand, milliseconds = worker.task, worker.milliseconds
        ended = report.get("verdict") in ("timeout", "error") and "message" not in report
        if not worker.ready:
            self._note_start(failed=ended)
        worker.rest()
        if ended or worker.done >= _TASKS_PER_WORKER:
            self._dismiss(worker)
        if errand is not None and errand.task in errand.call.open:
            errand.call.found.append((errand.task, report, milliseconds))
            del errand.call.open[errand.task]

    def _note_start(self, failed: bool) -> None:
        self._failed_starts = self._failed_starts + 1 if failed else 0
        if self._failed_starts == _STARTS_BEFORE_GIVING_UP:
            self._failed_starts = 0
            raise VerifierUnavailable(
                f"{_STARTS_BEFORE_GIVING_UP} verification workers in a row died or were not ready in time; "
                "raise memory_mb"
            )

    def _dismiss(self, worker: Worker[_Errand[AnyTask]]) -> None:
        self._crew.remove(worker)
        worker.end()
