"""torchrun as a Prefect task: started, watched, and stopped with the flow run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

_STOP_SECONDS = 60.0
"""Time for the first process to record where the run stopped, before all are killed."""


@task(name="torchrun", task_run_name="torchrun on node {node}", cache_policy=NO_CACHE, persist_result=False)
def launch(options: Sequence[str], program: Sequence[str], node: int) -> None:
    """Execute a module of Python in several processes under torchrun, and wait for all of them.

    If the task is interrupted, as by cancelling its flow run, the processes get SIGTERM, and later SIGKILL.

    Args:
        options: The options of torchrun.
        program: The module and its arguments.
        node: The rank of this node, for the name of the task run.

    Raises:
        RuntimeError: A process failed. The messages of all are in the log of the worker.
    """
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", *program]
    # The program has a flow run of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait()
    finally:
        _stop(process)
    if code:
        raise RuntimeError(f"torchrun on node {node} ended with exit code {code}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop torchrun, which forwards the signal to its processes, and kill what is left of them."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
