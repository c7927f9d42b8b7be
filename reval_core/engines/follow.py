"""Ends an engine's processes, also when the run that started them was killed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

import psutil

RUN_PROCESS = "REVAL_RUN_PROCESS"
"""The environment variable with the id of the process that owns the engine."""

_KILLS, _KILL_SECONDS = 10, 1.0


def follow_run(end: Callable[[], object]) -> None:
    """Call `end` from a thread when the run's process has ended. Does nothing outside a run."""
    if RUN_PROCESS not in os.environ:
        return
    try:
        run = psutil.Process(int(os.environ[RUN_PROCESS]))
    except psutil.NoSuchProcess:
        end()
        return
    threading.Thread(target=lambda: (run.wait(), end()), daemon=True, name="follow the run").start()


def kill_group(group: int) -> None:
    """Kill all processes of a process group, except this one and those that free what the others have shared.

    The latter, Python's resource trackers, end by themselves after they have deleted the others' shared memory.
    """
    for _ in range(_KILLS):  # until those that were started meanwhile are gone as well
        members = [one for one in psutil.process_iter() if _is_in(one, group)]
        if not members:
            return
        for one in members:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(members, timeout=_KILL_SECONDS)


def _is_in(process: psutil.Process, group: int) -> bool:
    try:
        return (
            os.getpgid(process.pid) == group
            and process.pid != os.getpid()
            and process.status() != psutil.STATUS_ZOMBIE
            and not any("resource_tracker" in word for word in process.cmdline())
        )
    except (psutil.Error, ProcessLookupError):
        return False
