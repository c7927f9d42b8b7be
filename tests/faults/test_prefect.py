"""The command line with a real Prefect server: killed, cancelled, retried, and with a server that dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reval.flows.server import answers
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory
from tests.faults.zygote import CONFIG
from tests.integration.test_training import tables
from tests.runs import run

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
ROUNDS = 12


class Server:
    """A Prefect server with its own database, and the environment with which commands find it."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.environment = {
            **os.environ,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "XDG_CACHE_HOME": str(home / "cache"),
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        environment = {**self.environment, "PREFECT_API_URL": ""}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
        deadline = time.monotonic() + 120
        while not answers(self.environment["PREFECT_API_URL"]):
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill the server, as in a crash."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a Python module as a command, with its standard output piped."""
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def state(self, flow_run: str) -> str:
        """The type of a flow run's state."""
        done = self.start("prefect", "flow-run", "inspect", flow_run, "--output", "json")
        return str(json.loads(done.communicate()[0])["state_type"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "prefect")
    yield found
    found.kill()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    values = CONFIG.model_copy(update={"rounds": ROUNDS}).model_dump(mode="json")
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def read_until(process: subprocess.Popen[str], sign: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if sign in line:
            return
    pytest.fail(f"{sign!r} was not printed: {''.join(seen)}")


def flow_runs(path: Path) -> list[str]:
    found: list[str] = json.loads((path / "prefect.json").read_text())["flow_runs"]
    return found


def assert_as_undisturbed(path: Path, tmp_path: Path) -> None:
    run(tmp_path / "undisturbed", CONFIG.model_copy(update={"rounds": ROUNDS}))
    killed, whole = RunDirectory(path), RunDirectory(tmp_path / "undisturbed")
    assert summarise(killed)["policy_digest"] == summarise(whole)["policy_digest"]
    assert tables(killed) == tables(whole)


def test_a_killed_stopped_and_retried_run_ends_like_an_uninterrupted_one(server, config, tmp_path):
    path = tmp_path / "runs" / "killed"
    killed = server.start("reval.flows.cli", "train", config, "--run-dir", path)
    read_until(killed, "round  2/")
    killed.kill()
    killed.wait()
    (first,) = flow_runs(path)
    assert server.state(first) == "RUNNING"

    stopped = server.start("reval.flows.cli", "resume", path)
    read_until(stopped, "round  4/")
    stopped.send_signal(signal.SIGTERM)
    told: Any = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 143
    assert "continues from there" in told
    assert f"reval resume {path}" in told
    assert server.state(first) == "CRASHED"
    second = flow_runs(path)[1]
    assert server.state(second) == "CRASHED"

    retried = server.start("prefect", "flow-run", "retry", second, "--entrypoint", "flows/train.py:train")
    told = retried.communicate()[0]
    assert retried.returncode == 0, told
    assert server.state(second) == "COMPLETED"
    assert_as_undisturbed(path, tmp_path)


def test_training_continues_without_its_server(server, config, tmp_path):
    path = tmp_path / "runs" / "left"
    left = server.start("reval.flows.cli", "train", config, "--run-dir", path)
    read_until(left, "round  2/")
    server.kill()
    told = left.communicate(timeout=300)[0]
    assert left.returncode == 0, told
    assert "the Prefect server stopped responding" in told
    assert_as_undisturbed(path, tmp_path)
