"""Worker processes: starting them, handing them tasks, seeing what became of them."""

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
# Both are for a machine that is busy with much else: starting takes a second of processor time.
_START_SECONDS = 300.0
_ANSWER_SECONDS = 120.0
# Behind the deadline, which stands still while a worker waits for a processor: for what does not get on at all.
_WALL_FACTOR = 30.0
_SHORTEST_PATIENCE = 0.01

Task = TypeVar("Task")


class VerifierUnavailable(RevalError):
    """Worker processes do not start. Why, they say on standard error."""


class ForkServer:
    """The process that workers are forked from (`reval_core.verification.forkserver`), ready when this returns.

    Raises:
        VerifierUnavailable: it does not start.
    """

    def __init__(self, job: dict[str, Any], memory_mb: int, timeout_seconds: float) -> None:
        self.graded = job["function"] is not None
        """Whether the workers run a user's function."""
        self._limits = f"{memory_mb} {timeout_seconds} {_WALL_FACTOR * timeout_seconds}"
        self._orders, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P keeps the script's folder, whose modules have common names, off the import path.
                [sys.executable, "-P", _FORK_SERVER, str(theirs.fileno()), str(_ROOT)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # sympy's order of terms depends on hashes; verdicts should not differ from one start to the next.
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
                    f"the process that verification workers come from was not ready in {_START_SECONDS:.0f} s or "
                    f"died ({error}); check that math-verify, or the reward's function, can be imported"
                ) from error
            raise

    def fork(self) -> tuple[int, socket.socket]:
        """The process id of a new worker and the connection to it. Raises OSError where the nursery has died."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._orders, [f"fork {self._limits}".encode()], [theirs.fileno()])
            return int(self._answer()), ours
        except BaseException:
            ours.close()
            raise

    def end(self, worker: int) -> None:
        """Kill a worker and wait until it is gone."""
        with contextlib.suppress(OSError):  # a nursery that has died took its workers along
            self._orders.sendall(f"end {worker}".encode())
            self._answer()

    def close(self) -> None:
        """End all workers and the nursery, and wait until they are gone."""
        self._orders.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> bytes:
        """The process id that an order is answered with. Raises OSError where none comes; so will later orders."""
        try:
            answer = self._orders.recv(32)
            if answer.isdigit():
                return answer
            raise OSError("the nursery of verification workers has died")
        except BaseException:  # what is left unread would be taken for the answer to the next order
            self._orders.close()
            raise

    def abandon(self) -> None:
        """Let go of a nursery that belongs to the process that this one was forked from."""
        self._orders.close()
        self._process.returncode = 0  # not a child of this process


class Worker(Generic[Task]):
    """One worker process: starting until it first reports, then idle or busy with a task."""

    def __init__(self, fork_server: ForkServer, timeout_seconds: float) -> None:
        self.task: Task | None = None
        self.ready = False
        self.done = 0
        self._fork_server = fork_server
        self._timeout_seconds = timeout_seconds
        self._received = b""
        self._since = time.monotonic()
        self._computed_before = 0.0
        self._held_up_before = self._held_up = 0.0
        self._process, self.connection = fork_server.fork()
        self.connection.setblocking(False)

    @property
    def late(self) -> bool:
        """Whether it has used up the time for its task; an idle worker never has.

        What counts is processor time, or for a user's function, which may wait for others, all time but that in
        which it waited for a processor. Behind that stands a limit of thirty times as much by the clock.
        """
        if not self.ready:
            return self._elapsed >= _START_SECONDS
        if self.task is None or self._elapsed < self._timeout_seconds:
            return False
        return self._spent >= self._timeout_seconds or self._elapsed >= _WALL_FACTOR * self._timeout_seconds

    @property
    def patience(self) -> float:
        """For how many seconds it cannot become late."""
        if not self.ready:
            return max(0.0, _START_SECONDS - self._elapsed)
        if self.task is None:
            return math.inf
        spent = self._elapsed if self._elapsed < self._timeout_seconds else self._spent
        return max(_SHORTEST_PATIENCE, self._timeout_seconds - spent)

    @property
    def milliseconds(self) -> float:
        """Since it took its task."""
        return 1000.0 * self._elapsed

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._since

    @property
    def _spent(self) -> float:
        """The seconds that the deadline counts."""
        if self._fork_server.graded:
            # What has ended is not seen any more, though its time counts.
            self._held_up = max(self._held_up, _seconds_held_up(self._process) - self._held_up_before)
            return self._elapsed - self._held_up
        return _seconds_computed(self._process) - self._computed_before

    def take(self, task: Task, message: dict[str, Any]) -> None:
        """Hand it a task. Raises OSError where it has died."""
        self.connection.settimeout(_ANSWER_SECONDS)
        self.connection.sendall(json.dumps(message).encode() + b"\n")
        self.connection.setblocking(False)
        self.task = task
        self._since = time.monotonic()
        if self._fork_server.graded:
            self._held_up_before, self._held_up = _seconds_in_queue(self._process), 0.0
        else:
            self._computed_before = _seconds_computed(self._process)

    def report(self) -> dict[str, Any] | None:
        """What it has sent, or None while that is incomplete.

        It is a verdict of ``error`` where it has died or sent what is no report, and ``timeout`` where its own
        alarm has ended it.
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

    def rest(self) -> None:
        """It has reported and waits for a task."""
        self.done += self.task is not None
        self.ready = True
        self.task = None

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self._fork_server.end(self._process)
        self.connection.close()


def _seconds_computed(process: int) -> float:
    """The processor time of a process: on a busy machine the clock would make every task a slow one."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # no /proc: the clock must do
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _seconds_held_up(worker: int) -> float:
    """How long a worker and all below it could have computed but had no processor; 0 where no system says so."""
    return sum(map(_seconds_in_queue, [worker, *below(worker)])) if sys.platform == "linux" else 0.0


def _seconds_in_queue(process: int) -> float:
    try:
        return int(Path(f"/proc/{process}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
