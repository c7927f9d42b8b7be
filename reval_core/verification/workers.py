"""Worker processes: starting them, assigning tasks and reading their reports."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Generic, TypeVar

from reval_core.errors import RevalError
from reval_core.verification.descendants import below
from reval_core.verification.reports import LONGEST_REPORT, READY, read_report

_FORK_SERVER = Path(__file__).with_name("forkserver.py")
_ROOT = Path(__file__).parents[2]
# Both allow for a heavily loaded machine: starting takes a second of processor time.
_START_SECONDS = 300.0
_ANSWER_SECONDS = 120.0
# The deadline does not advance while a worker waits for a processor. This wall-clock limit catches stalled workers.
_WALL_FACTOR = 30.0
_SHORTEST_WAIT = 0.01

Task = TypeVar("Task")


class VerifierUnavailable(RevalError):
    """Worker processes cannot be started. They write the reason to standard error."""


class ForkServer:
    """The process that workers are forked from (`reval_core.verification.forkserver`); ready once constructed.

    Raises:
        VerifierUnavailable: It cannot be started.
    """

    def __init__(self, job: dict[str, Any], memory_mb: int, timeout_seconds: float) -> None:
        self.graded = job["function"] is not None
        """Whether the workers run a user's function."""
        self._limits = f"{memory_mb} {timeout_seconds} {_WALL_FACTOR * timeout_seconds}"
        self._orders, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P keeps the script's directory, whose modules have common names, off the import path.
                [sys.executable, "-P", _FORK_SERVER, str(theirs.fileno()), str(_ROOT)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # sympy's order of terms depends on hashes; verdicts must be the same in every process.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        try:
            self._orders.settimeout(_START_SECONDS)
            self._orders.sendall(json.dumps(job).encode())
            if self._orders.recv(16) != b"ready":
                raise OSError("it ended")
            self._orders.settimeout(_ANSWER_SECONDS)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise VerifierUnavailable(
                    f"the fork server of the verification workers died or was not ready within "
                    f"{_START_SECONDS:.0f} s ({error}); check that math-verify, or the reward function, can be "
                    "imported"
                ) from error
            raise

    def fork(self) -> tuple[int, socket.socket]:
        """Start a worker.

        Returns:
            Its process id and the connection to it.

        Raises:
            OSError: The fork server has died.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._orders, [f"fork {self._limits}".encode()], [theirs.fileno()])
            return int(self._answer()), ours
        except BaseException:
            ours.close()
            raise

    def end(self, worker: int) -> None:
        """Kill a worker and wait until it has ended."""
        with contextlib.suppress(OSError):  # a fork server that has died took its workers with it
            self._orders.sendall(f"end {worker}".encode())
            self._answer()

    def close(self) -> None:
        """Stop all workers and the fork server, and wait until they have ended."""
        self._orders.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> bytes:
        """The process id in the answer to a command. Raises OSError if there is none, and on all later calls."""
        try:
            answer = self._orders.recv(32)
            if answer.isdigit():
                return answer
            raise OSError("the fork server of the verification workers has died")
        except BaseException:  # unread data would be mistaken for the answer to the next command
            self._orders.close()
            raise

    def abandon(self) -> None:
        """Disconnect from a fork server that belongs to the parent of this forked process."""
        self._orders.close()
        self._process.returncode = 0  # not a child of this process


class Worker(Generic[Task]):
    """A worker process: starting until its first report, then idle or busy with a task."""

    def __init__(self, fork_server: ForkServer, timeout_seconds: float) -> None:
        self.task: Task | None = None
        self.ready = False
        self.tasks_done = 0
        self._fork_server = fork_server
        self._timeout_seconds = timeout_seconds
        self._received = b""
        self._since = time.monotonic()
        self._computed_before = 0.0
        self._queued_before = self._queued = 0.0
        self._process, self.connection = fork_server.fork()
        self.connection.setblocking(False)

    @property
    def late(self) -> bool:
        """Whether it has exceeded the deadline of its task; an idle worker never has.

        The deadline counts processor time. For a user's function, which may wait for other processes, it counts
        all time except that spent waiting for a processor. Wall time is limited to thirty times as much.
        """
        if not self.ready:
            return self._elapsed >= _START_SECONDS
        if self.task is None or self._elapsed < self._timeout_seconds:
            return False
        return (
            self._counted_seconds >= self._timeout_seconds or self._elapsed >= _WALL_FACTOR * self._timeout_seconds
        )

    @property
    def seconds_until_late(self) -> float:
        """A lower bound of the seconds until it can become late."""
        if not self.ready:
            return max(0.0, _START_SECONDS - self._elapsed)
        if self.task is None:
            return math.inf
        counted = self._elapsed if self._elapsed < self._timeout_seconds else self._counted_seconds
        return max(_SHORTEST_WAIT, self._timeout_seconds - counted)

    @property
    def milliseconds(self) -> float:
        """Wall time since its task was assigned, in milliseconds."""
        return 1000.0 * self._elapsed

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._since

    @property
    def _counted_seconds(self) -> float:
        """The seconds that the deadline counts."""
        if self._fork_server.graded:
            # Processes that have ended are no longer visible, but their waiting time still counts.
            self._queued = max(self._queued, _total_queue_seconds(self._process) - self._queued_before)
            return self._elapsed - self._queued
        return _seconds_computed(self._process) - self._computed_before

    def assign(self, task: Task, message: dict[str, Any]) -> None:
        """Assign a task to it. Raises OSError if it has died."""
        self.connection.settimeout(_ANSWER_SECONDS)
        self.connection.sendall(json.dumps(message).encode() + b"\n")
        self.connection.setblocking(False)
        self.task = task
        self._since = time.monotonic()
        if self._fork_server.graded:
            self._queued_before, self._queued = _queue_seconds(self._process), 0.0
        else:
            self._computed_before = _seconds_computed(self._process)

    def report(self) -> dict[str, Any] | None:
        """The report that it has sent, or None while that is incomplete.

        The verdict is ``error`` if it has died or its report is invalid, and ``timeout`` if its own timer ended it.
        """
        try:
            received = self.connection.recv(LONGEST_REPORT)
        except BlockingIOError:
            return None
        except OSError:
            received = b""
        self._received += received
        if received and b"\n" not in self._received and len(self._received) < LONGEST_REPORT:
            return None
        line, self._received = self._received, b""
        if not self.ready and line == READY:
            return {}
        report = read_report(line, self._fork_server.graded) if self.task is not None else None
        return report or {"verdict": "timeout" if self.late else "error"}

    def become_idle(self) -> None:
        """Mark it as ready for a task, after a report."""
        self.tasks_done += self.task is not None
        self.ready = True
        self.task = None

    def end(self) -> None:
        """Kill it and wait until it has ended."""
        self._fork_server.end(self._process)
        self.connection.close()


def _seconds_computed(process: int) -> float:
    """The processor time of a process in seconds; wall time would make every task slow on a loaded machine."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # without /proc only wall time is available
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _total_queue_seconds(worker: int) -> float:
    """Seconds that a worker and its descendants were runnable without a processor; 0 except on Linux."""
    return sum(map(_queue_seconds, [worker, *below(worker)])) if sys.platform == "linux" else 0.0


def _queue_seconds(process: int) -> float:
    try:
        return int(Path(f"/proc/{process}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
