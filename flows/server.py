"""A local Prefect server and the worker that carries deployments out: started where none is, stopped after use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reval_core.errors import RevalError

LOCAL_API = "http://127.0.0.1:4200/api"
WORK_POOL = "reval"

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


def api_url() -> str:
    """The Prefect API that is configured, in the environment or in Prefect's profile; else the local one."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or LOCAL_API


def answers(url: str) -> bool:
    """Whether a Prefect server answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def server() -> Iterator[str]:
    """The URL of a Prefect server that answers, for this process and its children.

    If none answers a local one is started, and stopped at the end. Raises RevalError if it does not start.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = api_url()
    os.environ["PREFECT_API_URL"] = url  # for children
    with temporary_settings({PREFECT_API_URL: url}), _answering(url):
        yield url


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """A server at `url`: the one that is there, or a local one for as long as the block lasts."""
    if answers(url):
        yield
        return
    if url != LOCAL_API:
        raise RevalError(f"{url}: no Prefect server answers; start it, or unset PREFECT_API_URL to use a local one")
    # Its log is of no use to somebody who trains, and would tear the progress apart.
    with _process("server", "start", "--host", "127.0.0.1", "--port", "4200", quiet=True) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RevalError("the Prefect server did not start; run `prefect server start` to see why")
            time.sleep(0.2)
        yield


@contextmanager
def worker() -> Iterator[None]:
    """Register the deployments of prefect.yaml and run a worker that carries them out.

    Raises RevalError if there is no prefect.yaml here, or Prefect refuses it.
    """
    if not Path("prefect.yaml").exists():
        raise RevalError("no prefect.yaml in this folder; run this from the root of the project")
    _make_work_pool()
    with _process("worker", "start", "--pool", WORK_POOL, "--name", f"reval-{os.getpid()}"):
        # The worker takes as long to start as the registration takes.
        done = subprocess.run(_prefect("--no-prompt", "deploy", "--all"), capture_output=True, text=True)
        if done.returncode != 0:
            raise RevalError(f"prefect deploy --all failed: {(done.stdout + done.stderr).strip()[-2000:]}")
        yield


def _make_work_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))


@contextmanager
def _process(*arguments: str, quiet: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A Prefect command running in the background, with whatever it starts, until the end of the block."""
    output = subprocess.DEVNULL if quiet else None
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",  # a run's lines appear as they are printed
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    process = subprocess.Popen(
        _prefect(*arguments), stdout=output, stderr=output, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]
