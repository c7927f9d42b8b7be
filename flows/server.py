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
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPException
from json import JSONDecodeError
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import IO
from urllib.parse import urlsplit

import yaml

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


@dataclass(frozen=True)
class LocalServer:
    """The server that is started here if no Prefect API is configured."""

    host: str = "127.0.0.1"
    """The address that it listens on."""
    port: int = 4200
    database: str | None = None
    """The URL of a PostgreSQL database; None for SQLite in PREFECT_HOME."""

    @property
    def url(self) -> str:
        """The URL of its API for this host."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/api"

    def environment(self) -> dict[str, str]:
        """Settings for the server's process. A password in a command's arguments could be read by other users."""
        database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database} if self.database else {}
        # Prefect's default keeps leases in memory: a run directory's turn would be taken forever after a restart.
        leases = "prefect.server.concurrency.lease_storage.filesystem"
        return {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": leases, **os.environ, **database}


@contextmanager
def server(local: LocalServer | None = None) -> Iterator[str]:
    """The URL of a running Prefect server, for this process and its children.

    If none is configured and none responds, a local one is started, and stopped at the end.

    Raises:
        InputError: The configured server cannot be used, or `local.database` cannot apply.
        RevalError: The server does not start.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    local = local or LocalServer()
    if local.database is not None:
        _check_database(local.database)
    url = configured_api() or local.url
    if url != local.url:
        check_api(url)
    running = url != local.url or answers(url)
    if running and local.database is not None:
        raise InputError(
            f"--database: a Prefect server runs at {visible(_without_password(url))} already; stop it, or omit "
            "--database"
        )
    os.environ["PREFECT_API_URL"] = url  # for children
    with temporary_settings({PREFECT_API_URL: url}), nullcontext() if running else _started(local):
        yield url


def _check_database(url: str) -> None:
    """Check that a URL names a PostgreSQL database."""
    if not re.fullmatch(r"postgresql\+asyncpg://[^/]*/.+", url):
        raise InputError(
            f"--database: {visible(_without_password(url))}: is not a URL such as "
            "postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
        )


@contextmanager
def _started(local: LocalServer) -> Iterator[None]:
    """A server that runs for the duration of the block."""
    command = ("server", "start", "--host", local.host, "--port", str(local.port))
    # Its log would break up the progress bar.
    with TemporaryFile() as written, _process(*command, output=written, environment=local.environment()) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not answers(local.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RevalError(f"the Prefect server did not start{_last_line(written)}")
            time.sleep(0.2)
        yield


def _last_line(written: IO[bytes]) -> str:
    """The last line of a server's log, as the end of a message."""
    written.seek(0)
    lines = written.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {visible(last)[:300]}" if last else "; run `prefect server start` to see why"


@contextmanager
def worker(pool: str = WORK_POOL) -> Iterator[subprocess.Popen[bytes]]:
    """Register the deployments of prefect.yaml in a work pool, and run a worker for it in the current directory.

    A pool that does not exist is created as a process pool. Raises RevalError if Prefect rejects a deployment.
    """
    _make_work_pool(pool)
    environment = {"REVAL_DIRECTORY": os.getcwd(), **os.environ, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    command = ("worker", "start", "--pool", pool, "--name", f"reval-{os.getpid()}")
    with _process(*command, environment=environment) as process:
        # The worker takes as long to start as the registration takes.
        _register(pool)
        yield process


def _register(pool: str) -> None:
    deployments = yaml.safe_load(_DEPLOYMENTS.read_text(encoding="utf-8"))
    for deployment in deployments["deployments"]:
        deployment["work_pool"]["name"] = pool
    with NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(deployments, file)
        file.flush()
        register = _prefect("--no-prompt", "deploy", "--all", "--prefect-file", file.name)
        done = subprocess.run(register, capture_output=True, text=True)
    if done.returncode != 0:
        raise RevalError(f"prefect deploy --all failed: {(done.stdout + done.stderr).strip()[-2000:]}")


def _make_work_pool(name: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


@contextmanager
def _process(
    *arguments: str, environment: dict[str, str], output: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Prefect command and its children, running in the background until the end of the block."""
    environment |= {
        "PYTHONUNBUFFERED": "1",  # show a run's lines as they are printed
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
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
