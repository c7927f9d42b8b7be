"""A PostgreSQL server of its own for a test, in a temporary directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNPRIVILEGED = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root


class PostgreSQL:
    """A running server with an empty database `prefect`."""

    def __init__(self, programs: Path, port: int) -> None:
        self._programs = programs
        self._port = port
        self.url = f"postgresql+asyncpg://reval@127.0.0.1:{port}/prefect"

    def query(self, sql: str) -> list[str]:
        """The rows of a query."""
        command = [
            self._programs / "psql",
            "-h",
            "127.0.0.1",
            "-p",
            str(self._port),
            "-U",
            "reval",
            "-tA",
            "-c",
            sql,
        ]
        done = subprocess.run([*map(str, command), "prefect"], capture_output=True, text=True, check=True)
        return done.stdout.split("\n")[:-1]


def programs() -> Path | None:
    """The directory of PostgreSQL's programs; Debian keeps them off the path."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    return next(iter([*places, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]), None)


@contextmanager
def running(port: int) -> Iterator[PostgreSQL]:
    """A server on this port of the loopback address, stopped and deleted at the end."""
    place = programs()
    assert place is not None, "the caller skips the test without PostgreSQL"
    with tempfile.TemporaryDirectory(prefix="reval-postgresql-") as made:
        home = Path(made)
        data = home / "data"
        if _UNPRIVILEGED:
            shutil.chown(home, _UNPRIVILEGED)
        _run(place / "initdb", "-D", data, "-U", "reval", "-A", "trust", "--no-sync")
        options = f"-h 127.0.0.1 -p {port} -k {home} -c fsync=off"
        _run(place / "pg_ctl", "-D", data, "-o", options, "-l", home / "log", "-w", "start")
        try:
            _run(place / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "reval", "prefect")
            yield PostgreSQL(place, port)
        finally:
            _run(place / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def _run(*command: object) -> None:
    done = subprocess.run(
        [*map(str, command)],
        user=_UNPRIVILEGED,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
