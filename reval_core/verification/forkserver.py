"""Fork server of the verification workers: imports their dependencies once, so that a new worker takes 10 ms.

`verification.workers` starts it as a script, so that it does not import the caller's ``__main__``. It receives
commands over an inherited socket and answers each: ``fork`` comes with a socket for the new worker and is answered
with its process id; ``end`` kills a worker and is answered when it has ended. Only ``end`` reaps, so a process id
is not reused before. Processes that a user's function starts end with the response that they were started for
(`reval_core.verification.descendants`). When the socket closes, which also happens when the caller dies for any
reason, the fork server ends all workers and itself.

A worker reads JSON tasks from its socket, one per line, and answers each with a line of JSON
(`reval_core.verification.reports`). It may be killed at any time. It runs each call of a user's function in a
separate process, so that calls do not affect each other.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import random
import resource
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

# The address space that a worker must be able to allocate when it starts.
_LEAST_MEMORY = 16 << 20
# The caller kills late workers. If the caller is gone, a timer of the kernel does so this much later.
_GRACE_SECONDS = 1.0
_LONGEST_MESSAGE = 2000
_WARM_UP = [
    (r"\left(1, \frac{1}{6}\right]", r"(1, 0.5]"),
    ("x^2 + 2x + 1", "(x + 1)^2"),
    (r"\sqrt{2} \sin(x)", "e^{2t}"),
    (r"\begin{pmatrix} 1 \\ \frac{1}{2} \end{pmatrix}", r"\begin{pmatrix} 1 \\ 0.5 \end{pmatrix}"),
    (r"x = 1, y = -\frac{2}{3}", r"\{1, 2\}"),
    (r"(-\infty, 0) \cup [1, 2]", r"-2 \le x < 7"),
    (r"3 \pm \sqrt{5}", r"15\%"),
    (r"\text{even}", r"12 \text{ cm}"),
    (r"\sum_{k=1}^{3} k", r"\int_0^1 12x dx"),
    (
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"\begin{pmatrix} 1 \\ 1 \end{pmatrix} + \begin{pmatrix} 0 \\ 1 \end{pmatrix}",
    ),
]
"""The first comparison of each kind takes ten times as long as later ones; no deadline should include that."""


Work = Callable[[dict[str, Any]], bytes]
"""Maps a task to a report, serialized as a line."""


def main(descriptor: int, root: str) -> None:
    """Serve commands from a socket until it closes.

    Args:
        descriptor: The file descriptor of the socket.
        root: The directory that contains reval_core.
    """
    sys.path.insert(0, root)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the caller decides
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)  # math-verify logs everything that it cannot parse
    from reval_core.verification.descendants import adopt_orphans, descendants, end_descendants, end_with_parent

    orders = socket.socket(fileno=descriptor)
    job = json.loads(orders.recv(1 << 16))
    user_code = job["function"] is not None  # math-verify starts no processes
    if user_code:
        adopt_orphans()
    work = _prepare(job)
    module_processes = descendants()  # processes that the user's module started when it was imported
    orders.send(b"ready")
    gc.collect()
    gc.freeze()  # so that forked workers do not write to shared pages
    workers: set[int] = set()
    while True:
        order, sockets, _, _ = socket.recv_fds(orders, 1 << 10, 1)
        if not order:
            break
        name, number, *rest = order.decode().split()
        if name == "fork":
            worker = os.fork()
            if worker == 0:
                os.setpgid(0, 0)  # processes that a task starts are killed with its worker
                orders.close()
                end_with_parent()
                if user_code:
                    adopt_orphans()
                connection = socket.socket(fileno=sockets[0])
                _limit(int(number))
                _work(
                    connection, partial(_in_own_process, connection, work) if user_code else work, *map(float, rest)
                )
            with contextlib.suppress(OSError):  # the worker has already done it
                os.setpgid(worker, worker)
            os.close(sockets[0])
            workers.add(worker)
            orders.send(str(worker).encode())
        else:
            _end(int(number))
            workers.discard(int(number))
            if user_code:
                end_descendants(spared={*workers, *module_processes})
            orders.send(number.encode())
    for worker in workers:
        _end(worker)
    end_descendants()


def _end(worker: int) -> None:
    """Kill a worker with its process group and wait until it has ended."""
    with contextlib.suppress(OSError):
        os.killpg(worker, signal.SIGKILL)
    with contextlib.suppress(OSError):  # it may have left its group
        os.kill(worker, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(worker, 0)


def _prepare(job: dict[str, Any]) -> Work:
    """Import the dependencies of a job and return the function that processes its tasks."""
    from reval_core.verification.reports import write_report

    if job["function"] is not None:
        from reval_core.user_code import load_function

        function = load_function(job["function"])
        return lambda task: _grade(function, task["values"], job["settings"])
    from reval_core.verification import comparison

    for gold, answer in _WARM_UP:
        comparison.is_correct([gold], answer, lenient=False)

    def compare(task: dict[str, Any]) -> bytes:
        _seed()
        correct = comparison.is_correct(task["golds"], task["answer"], task["lenient"])
        return write_report({"verdict": "correct" if correct else "wrong"})

    return compare


def _seed() -> None:
    """Reset random number generators: sympy uses them, and verdicts must not depend on earlier ones."""
    random.seed(0)
    if "sympy.core.random" in sys.modules:
        sys.modules["sympy.core.random"].seed(0)


def _grade(function: Callable[..., Any], values: list[str], settings: dict[str, Any]) -> bytes:
    """The report of a user's function; an error if it raises or returns anything but a number from 0 to 1."""
    from reval_core.verification.reports import write_report

    _seed()
    try:
        returned = function(*values, **settings)
        outcome = None if returned is None else float(returned)
        if outcome is not None and (isinstance(returned, str) or not 0 <= outcome <= 1):
            raise ValueError(f"{returned!r} is not a number from 0 to 1")
    except Exception as error:
        message = f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]
        return write_report({"verdict": "error", "message": message})
    return write_report({"outcome": outcome})


def _in_own_process(connection: socket.socket, work: Work, task: dict[str, Any]) -> bytes:
    """Run a task in a forked process and return its report after all processes that it started have ended."""
    from reval_core.verification.descendants import end_descendants, end_with_parent
    from reval_core.verification.reports import LONGEST_REPORT

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            end_with_parent()
            os.close(connection.fileno())
            os.close(reading)
            os.write(writing, work(task))
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    end_descendants()
    os.set_blocking(reading, False)  # on macOS a remaining process may still hold the other end
    with open(reading, "rb", buffering=0) as pipe:
        report = pipe.read(LONGEST_REPORT) or b""
    return report if report.endswith(b"\n") else b"\n"


def _limit(memory_mb: int) -> None:
    """Limit the address space of this process to `memory_mb` MiB, and disable core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _work(connection: socket.socket, work: Work, timeout_seconds: float, wall_seconds: float) -> None:
    """Process tasks from the socket until it closes."""
    from reval_core.verification.reports import READY

    try:
        bytearray(_LEAST_MEMORY)
        connection.sendall(READY)
        with connection.makefile("rb") as tasks:
            for task in tasks:
                # Kernel timers, because no other thread runs while a big integer is computed.
                signal.setitimer(signal.ITIMER_PROF, timeout_seconds + _GRACE_SECONDS)
                signal.setitimer(signal.ITIMER_REAL, wall_seconds + _GRACE_SECONDS)
                report = work(json.loads(task))
                signal.setitimer(signal.ITIMER_PROF, 0.0)
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                connection.sendall(report)
        os._exit(0)
    except BaseException:
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
