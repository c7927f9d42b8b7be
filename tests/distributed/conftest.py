"""Starting the same program in several processes on the CPU, as users do with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this directory, which make test-distributed runs and make test leaves out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the tests of a module share."""
    return tmp_path_factory.mktemp("work")


def launched(processes: int, module: str, *arguments: object, hosts: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a module in this number of processes, on as many hosts as torchrun is told."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes // hosts)]
    program = ["-m", module, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if hosts == 1:
        commands = [[*launcher, "--standalone", *program]]
    else:
        port = _free_port()
        meeting = ["--nnodes", str(hosts), "--master-addr", "127.0.0.1", "--master-port", str(port)]
        commands = [[*launcher, *meeting, "--node-rank", str(host), *program] for host in range(hosts)]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    outputs = [one.communicate(timeout=500)[0] for one in started]
    return subprocess.CompletedProcess(commands[0], started[0].returncode, "\n".join(outputs))


def _free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
