"""The task that starts torchrun, with real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from reval.flows.torchrun import torchrun
from reval.tasks.launcher import launch
from reval_core.errors import InputError

ROOT = Path(__file__).parents[2]
TWO = ["--standalone", "--nproc-per-node", "2"]


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_an_interrupted_launch_stops_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "the flow run that launches")
    notes = [tmp_path / "started-0", tmp_path / "started-1"]

    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while not all(note.exists() for note in notes) and time.monotonic() < deadline:
            time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        launch.fn(TWO, ["tests.distributed.sleeper", str(tmp_path)], 0)
    for rank, note in enumerate(notes):
        pid, count, flow_run = note.read_text().split(" ")
        assert (count, flow_run) == ("2", "None")
        assert (tmp_path / f"stopped-{rank}").exists(), "it was not told to stop before it was killed"
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_process_that_fails_fails_the_launch(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="torchrun on node 0 ended with exit code 1"):
        launch.fn(TWO, ["tests.distributed.sleeper", str(tmp_path / "absent")], 0)


@pytest.mark.parametrize(
    ("node", "rendezvous", "why"),
    [
        (2, "host:29500", "node: 2 is not one of the 2 nodes"),
        (-1, "host:29500", "node: -1 is not one"),
        (0, "host", "rendezvous: host is not HOST:PORT"),
        (0, ":29500", "rendezvous"),
        (0, "host:port", "rendezvous"),
        (0, "host:70000", "rendezvous"),
    ],
)
def test_wrong_nodes_are_refused_before_torchrun_waits_for_them(node: int, rendezvous: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        torchrun.fn("small.yaml", nodes=2, node=node, rendezvous=rendezvous)
