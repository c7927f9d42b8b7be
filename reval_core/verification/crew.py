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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

from reval_core.errors import RevalError

_NURSERY = Path(__file__).with_name("nursery.py")
_ROOT = Path(__file__).parents[2]
_START_SECONDS = 60.0
# A worker that computes longer than this over a task is slow, and may be set aside.
_SLOW_SECONDS = 0.3
_LOWEST_PRIORITY = 19

Task = TypeVar("Task")


class VerifierUnavailable(RevalError):
    """Worker processes do not start. Why, they say on standard error."""


class Nursery:
    """The process that workers are forked from (`reval_core.verification.nursery`), ready when this returns.

    Raises:
        VerifierUnavailable: it does not start.
    """

    def __init__(self, job: dict[str, Any], memory_mb: int, timeout_seconds: float) -> None:
        self._job = json.dumps(job).encode()
        self._limits = f"{memory_mb} {timeout_seconds}"
        self._timeout_seconds = timeout_seconds
        self._orders, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P keeps the script's folder, whose modules have common names, off the import path.
                [sys.executable, "-P", _NURSERY, str(theirs.fileno()), str(_ROOT)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # sympy's order of terms depends on hashes; verdicts should not differ from one start to the next.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        try:
            self._orders.settimeout(_START_SECONDS)
            self._orders.sendall(self._job)
            if self._orders.recv(16) != b"ready":
                raise OSError("it ended")
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise VerifierUnavailable(
                    f"the process that verification workers come from was not ready in {_START_SECONDS:.0f} s or "
                    f"died ({error}); check that math-verify, or the reward's function, can be imported"
                ) from error
            raise

    def fork(self) -> tuple[int, Connection]:
        """The process id of a new worker and the connection to it. Raises OSError where the nursery has died."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._orders, [f"fork {self._limits}".encode()], [theirs.fileno()])
            return int(self._orders.recv(32) or self._died()), Connection(ours.detach())
        except BaseException:
            ours.close()
            raise

    def end(self, worker: int) -> None:
        """Kill a worker and wait until it is gone."""
        with contextlib.suppress(OSError):  # a nursery that has died took its workers along, or they are orphans
            self._orders.sendall(f"end {worker}".encode())
            self._orders.recv(16)

    def close(self) -> None:
        """End all workers and the nursery, and wait until they are gone."""
        self._orders.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def abandon(self) -> None:
        """Let go of a nursery that belongs to the process that this one was forked from."""
        self._orders.close()
        self._process.returncode = 0  # not a child of this process

    def _died(self) -> bytes:
        raise OSError("the nursery of verification workers has died")


class Worker(Generic[Task]):
    """One worker process: starting until it first reports, then idle or busy with a task."""

    def __init__(self, nursery: Nursery, timeout_seconds: float) -> None:
        self.task: Task | None = None
        self.ready = False
        self.aside = False
        """Whether it has been set aside: it goes on with its task at the lowest priority, and gets no other."""
        self.done = 0
        self._nursery = nursery
        self._timeout_seconds = timeout_seconds
        self._since = time.monotonic()
        self._computed_before = 0.0
        self._process, self.connection = nursery.fork()

    @property
    def deadline(self) -> float:
        """When it is late, in monotonic seconds; an idle worker never is."""
        if not self.ready:
            return self._since + _START_SECONDS
        return math.inf if self.task is None else self._since + self._timeout_seconds

    @property
    def slow_seconds(self) -> float:
        """How long it has computed beyond what a task may take before it counts as slow; 0 if set aside already."""
        if self.task is None or self.aside or self.milliseconds < 1000 * _SLOW_SECONDS:
            return 0.0
        return max(0.0, _seconds_computed(self._process) - self._computed_before - _SLOW_SECONDS)

    @property
    def milliseconds(self) -> float:
        """Since it took its task."""
        return 1000.0 * (time.monotonic() - self._since)

    def take(self, task: Task, message: dict[str, Any]) -> None:
        """Hand it a task. Raises OSError where it has died."""
        self.connection.send_bytes(json.dumps(message).encode())
        self.task = task
        self._since = time.monotonic()
        self._computed_before = _seconds_computed(self._process)

    def set_aside(self) -> None:
        """Let it go on with what the others leave of the processors."""
        self.aside = True
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.setpriority(os.PRIO_PROCESS, self._process, _LOWEST_PRIORITY)

    def report(self) -> dict[str, Any]:
        """What it has sent; a verdict of ``error`` where it has died, ``timeout`` by its own alarm."""
        try:
            found: dict[str, Any] = json.loads(self.connection.recv_bytes())
            return found
        except (EOFError, OSError):
            return {"verdict": "timeout" if time.monotonic() >= self.deadline else "error"}

    def rest(self) -> None:
        """It has reported and waits for a task."""
        self.done += self.task is not None
        self.ready = True
        self.task = None

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self._nursery.end(self._process)
        self.connection.close()


def _seconds_computed(process: int) -> float:
    """The processor time of a process: on a busy machine the clock would make every task a slow one."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # no /proc: the clock must do
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
