"""A local Prefect server and the worker that executes deployments: started if needed, stopped after use."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from json import JSONDecodeError
from pathlib import Path
from urllib.parse import urlsplit

from reval_core.errors import InputError, RevalError
from reval_core.output.control_characters import visible

LOCAL_API = "http://127.0.0.1:4200/api"
WORK_POOL = "reval"

_LOCALLY = "unset it for a local server"
_DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
_PATIENCE_SECONDS = 5.0
_START_SECONDS = 300.0  # the first start creates the database, and may read all of Prefect from a slow disk
_STOP_SECONDS = 10.0


def configured_api() -> str | None:
    """The Prefect API URL of the environment or of Prefect's profile, if any.

    Raises InputError if Prefect's settings are invalid.
    """
    from pydantic import ValidationError

    try:
        from prefect.settings import get_current_settings
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"Prefect's setting {'.'.join(map(str, first['loc']))}: {first['msg']}; correct it or unset it"
        ) from error
    return get_current_settings().api.url


def prefect_api() -> str | None:
    """The API that a flow in this process reports to; None if Prefect starts a server for it.

    Raises InputError if a configured one cannot be used (see `check_api`).
    """
    # The server that Prefect starts for a run needs more than its default 20 s on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
    # Prefect logs a line per task; the terminal shows one per round. The Prefect UI has the others.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    # Training does not need the server: retry for seconds, not minutes, when the end cannot be reported.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")
    url = configured_api()  # reads the settings above, once for this process
    if url is not None:
        check_api(url)
    elif answers(LOCAL_API):
        os.environ["PREFECT_API_URL"] = url = LOCAL_API
    return url


def answers(url: str) -> bool:
    """Whether a Prefect server responds at `url`. Many other servers answer 200 to any request."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return bool(response.read(100).strip() == b"true")
    except (OSError, ValueError, HTTPException):
        return False


def check_api(url: str) -> None:
    """Check that a compatible Prefect server responds at `url`.

    Raises InputError, one line, within seconds: for an invalid URL, no response, or another kind of server.
    """
    from httpx import HTTPError, InvalidURL
    from prefect import __version__
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    shown = f"PREFECT_API_URL: {visible(_without_password(url))}"
    cloud = _check_url(url, shown)
    if cloud and not PREFECT_API_KEY.value():
        raise InputError(f"{shown}: is Prefect Cloud, which requires PREFECT_API_KEY; set it, or {_LOCALLY}")
    try:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            client = get_client(httpx_settings={"timeout": _PATIENCE_SECONDS}, sync_client=True)
            if cloud:
                if error := client.api_healthcheck():
                    raise error
                return
            found: object = client.api_version()
    except HTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            why = "denies access; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
        else:
            why = f"is not a Prefect server (status {status})" if status else f"does not respond ({_reason(error)})"
        raise InputError(f"{shown}: {why}; start one there, or {_LOCALLY}") from error
    except (InvalidURL, ValueError, OSError) as error:
        raise InputError(f"{shown}: is not a Prefect server ({_reason(error)}); {_LOCALLY}") from error
    numbers = re.match(r"(\d+)\.\d+", found) if isinstance(found, str) else None
    if numbers is None:
        raise InputError(f"{shown}: is not a Prefect server (it reports no version); {_LOCALLY}")
    if numbers[1] != __version__.partition(".")[0]:
        raise InputError(
            f"{shown}: runs Prefect {str(found)[:20]}, and this is Prefect {__version__}; start a server of this "
            f"version there, or {_LOCALLY}"
        )


def _check_url(url: str, shown: str) -> bool:
    """Check that a URL is complete. Returns whether it is Prefect Cloud's."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, an incomplete IPv6 address
        whole = False
    if not whole or not url.isprintable() or " " in url:
        raise InputError(f"{shown}: is not a URL such as {LOCAL_API}; {_LOCALLY}")
    return str(parts.hostname).endswith(".prefect.cloud")


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)


def _reason(error: Exception) -> str:
    """A short reason."""
    if isinstance(error, JSONDecodeError):
        return "it reports no version"
    return " ".join(str(error).split())[:100] or type(error).__name__


@contextmanager
def server() -> Iterator[str]:
    """The URL of a running Prefect server, for this process and its children.

    If none responds, a local one is started, and stopped at the end. Raises RevalError if it does not start.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = configured_api() or LOCAL_API
    os.environ["PREFECT_API_URL"] = url  # for children
    with temporary_settings({PREFECT_API_URL: url}), _running(url):
        yield url


@contextmanager
def _running(url: str) -> Iterator[None]:
    """A server at `url`: the existing one, or a local one for the duration of the block."""
    if url != LOCAL_API:
        check_api(url)
        yield
        return
    if answers(url):
        yield
        return
    # Its log would break up the progress bar.
    with _process("server", "start", "--host", "127.0.0.1", "--port", "4200", quiet=True) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RevalError("the Prefect server did not start; run `prefect server start` to see why")
            time.sleep(0.2)
        yield


@contextmanager
def worker() -> Iterator[None]:
    """Register the deployments of prefect.yaml and run a worker that executes them in the current directory.

    Raises RevalError if Prefect rejects them.
    """
    _make_work_pool()
    with _process("worker", "start", "--pool", WORK_POOL, "--name", f"reval-{os.getpid()}"):
        register = _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(_DEPLOYMENTS))
        # The worker takes as long to start as the registration takes.
        done = subprocess.run(register, capture_output=True, text=True)
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
    """A Prefect command and its children, running in the background until the end of the block."""
    output = subprocess.DEVNULL if quiet else None
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",  # show a run's lines as they are printed
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
