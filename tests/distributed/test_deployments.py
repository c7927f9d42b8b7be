"""`reval serve` with PostgreSQL: a server, a worker, deployments that take turns, and templates of work pools."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.types import HostConfig
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration

from tests.conftest import SMALL
from tests.distributed import postgresql

pytestmark = pytest.mark.skipif(postgresql.programs() is None, reason="PostgreSQL (initdb) is not installed")

ROOT = Path(__file__).parents[2]
POOL = "several hosts"
DEPLOYMENTS = (
    "reval-train/default",
    "reval-evaluate/evaluate",
    "reval-reproduce/reproduce",
    "reval-torchrun/torchrun",
)


@dataclass
class Served:
    """A running `reval serve`."""

    home: Path
    """The directory that it was started in."""
    database: postgresql.PostgreSQL
    environment: dict[str, str]

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The result of a Prefect command, from another directory than the worker's."""
        command = [sys.executable, "-m", "prefect", *arguments]
        return subprocess.run(command, env=self.environment, cwd="/", capture_output=True, text=True)

    def json(self, *arguments: str) -> Any:
        """The output of a Prefect command as JSON."""
        done = self.prefect(*arguments, "--output", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home, port = tmp_path_factory.mktemp("served"), free_port()
    (home / "small.yaml").write_text(yaml.safe_dump({**SMALL, "rounds": 2}))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_") and name != "PWD"
    }
    environment |= {"PREFECT_HOME": str(home / "prefect"), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with postgresql.running(free_port()) as database:
        options = ["--pool", POOL, "--database", database.url, "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "reval.flows.cli", "serve", *options],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if "Stop with Ctrl-C" in line:
                    break
            assert "Stop with Ctrl-C" in said[-1], "".join(said)
            client = environment | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
            yield Served(home, database, client)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def finished(served: Served, name: str, number: int, path: str = "%") -> list[str]:
    """The states of a flow's runs on paths like this one, once this number of them has ended."""
    flow = f"(SELECT id FROM flow WHERE name = '{name}')"
    these = f"FROM flow_run WHERE flow_id = {flow} AND name LIKE '{path}'"
    ended = f"SELECT id {these} AND state_type IN ('COMPLETED', 'FAILED', 'CRASHED')"
    deadline = time.monotonic() + 500
    while len(served.database.query(ended)) < number and time.monotonic() < deadline:
        time.sleep(1.0)
    return served.database.query(f"SELECT name, state_type {these} ORDER BY name, state_type")


def started(served: Served, deployment: str, **parameters: object) -> None:
    """Start a flow run of a deployment."""
    given = [part for name, value in parameters.items() for part in ("--param", f"{name}={value}")]
    done = served.prefect("deployment", "run", deployment, *given)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_flow_runs_on_one_run_directory_take_turns(served: Served) -> None:
    for _ in range(2):
        started(served, "reval-train/default", config="small.yaml", run_dir="runs/one")
    found = finished(served, "reval-train", 2, "runs/one")
    assert found == ["runs/one|COMPLETED"] * 2, served.database.query("SELECT message FROM log ORDER BY timestamp")
    assert (served.home / "runs/one/summary.json").exists(), "flow runs start in the worker's directory"

    waiting = "message LIKE '%waiting for another flow run%'"
    (waited,) = served.database.query(f"SELECT flow_run_id FROM log WHERE {waiting}")
    (runs,) = served.database.query(f"SELECT count(*) FROM task_run WHERE flow_run_id = '{waited}'")
    assert runs == "0", "the second flow run repeats nothing"
    tags = served.database.query("SELECT DISTINCT tags FROM flow_run WHERE name = 'runs/one'")
    assert {frozenset(json.loads(one)) for one in tags} == {frozenset({"reval", "train"})}


def test_the_turn_of_a_killed_flow_run_is_free_again(served: Served) -> None:
    started(served, "reval-train/default", config="small.yaml", run_dir="runs/killed")
    deadline = time.monotonic() + 300
    while not (served.home / "runs/killed/facts/round=00001").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (pid,) = served.database.query("SELECT infrastructure_pid FROM flow_run WHERE name = 'runs/killed'")
    os.kill(int(pid), signal.SIGKILL)
    started(served, "reval-train/default", config="small.yaml", run_dir="runs/killed")
    states = finished(served, "reval-train", 2, "runs/killed")
    assert states == ["runs/killed|COMPLETED", "runs/killed|CRASHED"]


def test_two_nodes_learn_together_and_a_wrong_node_is_not_retried(served: Served) -> None:
    parameters = {"config": "small.yaml", "nodes": 2, "rendezvous": f"127.0.0.1:{free_port()}", "processes": 1}
    parameters["overrides"] = json.dumps(["learner.shard=all"])
    for node in (1, 2, 0):
        started(served, "reval-torchrun/torchrun", **parameters, node=node, run_dir="runs/two")
    assert finished(served, "reval-torchrun", 3) == [
        "runs/two, node 0 of 2|COMPLETED",
        "runs/two, node 1 of 2|COMPLETED",
        "runs/two, node 2 of 2|FAILED",
    ], served.database.query("SELECT message FROM log ORDER BY timestamp")
    (counted,) = served.database.query("SELECT run_count FROM flow_run WHERE name = 'runs/two, node 2 of 2'")
    assert counted == "1"
    (trained,) = served.database.query("SELECT state_type FROM flow_run WHERE name = 'runs/two'")
    assert trained == "COMPLETED"
    recorded = json.loads((served.home / "runs/two/machine.json").read_text())
    assert recorded["processes"] == 2


def test_deployments_do_not_depend_on_the_directory_that_they_were_registered_in(served: Served) -> None:
    for name in DEPLOYMENTS:
        found = served.json("deployment", "inspect", name)
        assert found["work_pool_name"] == POOL
        assert str(served.home) not in json.dumps({**found, "path": None})
    command = (
        "--no-prompt",
        "deploy",
        "-n",
        "evaluate",
        "--pool",
        POOL,
        "--prefect-file",
        str(ROOT / "prefect.yaml"),
    )
    one = served.prefect(*command)
    assert "reval-evaluate/evaluate" in one.stdout, one.stdout + one.stderr


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_a_work_pool_is_created_from_its_template(served: Served, kind: str) -> None:
    file = ROOT / "infrastructure" / "work-pools" / f"{kind}.json"
    done = served.prefect("work-pool", "create", f"reval-{kind}", "--type", kind, "--base-job-template", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    found = served.json("work-pool", "inspect", f"reval-{kind}")
    template = found["base_job_template"]
    assert template == json.loads(file.read_text())
    placeholders = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert placeholders == set(template["variables"]["properties"]), "Prefect leaves out what no variable sets"


def test_the_process_template_starts_flow_runs_in_its_directory(served: Served) -> None:
    template = json.loads((ROOT / "infrastructure/work-pools/process.json").read_text())
    with temporary_settings({PREFECT_API_URL: served.environment["PREFECT_API_URL"]}):
        made = asyncio.run(ProcessJobConfiguration.from_template_and_values(template, {}))
    assert made.working_dir == Path("/srv/reval")
    assert made.env["REVAL_DIRECTORY"] == "/srv/reval"


def test_the_kubernetes_template_has_what_prefects_worker_requires() -> None:
    template = json.loads((ROOT / "infrastructure/work-pools/kubernetes.json").read_text())
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    required = {"parallelism": 1, "completions": 1, "restartPolicy": "Never"}  # prefect_kubernetes.worker
    assert required.items() <= pod.items()
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"


def test_the_docker_template_is_accepted_by_dockers_client() -> None:
    properties = json.loads((ROOT / "infrastructure/work-pools/docker.json").read_text())["variables"]["properties"]
    names = ("shm_size", "device_requests")
    made = HostConfig(version="1.47", **{name: properties[name]["default"] for name in names})
    assert made["ShmSize"] == 16 * 2**30
    assert made["DeviceRequests"] == [
        {"Driver": "nvidia", "Count": -1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
    ]
