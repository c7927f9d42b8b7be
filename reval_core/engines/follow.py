"""Ends a process with the run that started it: a run that is killed cannot stop its engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import psutil

RUN_PROCESS = "REVAL_RUN_PROCESS"
"""The environment variable with the id of the process that owns the engine."""


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
