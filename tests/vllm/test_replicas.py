"""Several vLLM servers that the engine starts itself: two of a tiny model, with one processor core each."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

pytest.importorskip("vllm")

from reval_core.config import VllmEngine
from reval_core.engines.engine import Sampling
from reval_core.engines.placement import places
from reval_core.engines.replicas import VllmReplicas
from tests.vllm.test_vllm import gone, processes_of
from tests.vllm.test_vllm_server import REPOSITORY, STOPS, check_ends, check_guard, check_logprobs, model_of, wanted

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core per replica")

SETTINGS = VllmEngine(kind="vllm", dtype="float32", kv_cache_gib=0.2, max_num_seqs=64, replicas=2)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmReplicas]:
    engine = VllmReplicas(SETTINGS, places(SETTINGS), tmp_path_factory.mktemp("run"))
    yield engine
    engine.close()


def policy(seed: int) -> str:
    return f"{seed:016x}" + "0" * 48


def client(engine: VllmReplicas, number: int) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(engine._processes[number].socket))
    return httpx.Client(base_url="http://replica", transport=transport)


def served(engine: VllmReplicas) -> list[float]:
    """The number of responses that each server has finished since its start, by its own count."""
    counts = []
    for number in (0, 1):
        with client(engine, number) as asked:
            text = asked.get("/metrics", headers={"Authorization": f"Bearer {engine._key}"}).text
        counts.append(sum(map(float, re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", text, re.MULTILINE))))
    return counts


def processes(engine: VllmReplicas, number: int) -> psutil.Process:
    return psutil.Process(engine._processes[number]._process.pid)


def wait_for_all(engine: VllmReplicas) -> None:
    """Wait until every server has restarted and holds the weights."""
    deadline = time.monotonic() + 240
    while not all(server.ready for server in engine._servers):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_both_servers_generate_with_the_current_weights(engine):
    for seed in (1, 2):
        model = model_of(seed)
        engine.load(model, policy(seed))
        before = served(engine)
        requests = wanted(48)
        found = list(engine.generate(requests, Sampling(1.0, 24, STOPS)))
        assert len(found) == 48
        check_logprobs(requests, dict(found), model, 1.0)
        check_ends(dict(found), 24)
        shares = [now - then for now, then in zip(served(engine), before, strict=True)]
        assert sum(shares) == 48
        assert min(shares) >= 12


def test_every_route_needs_the_key_and_no_port_is_open(engine, monkeypatch):
    engine.load(model_of(1), policy(1))
    monkeypatch.setattr("tests.vllm.test_vllm_server.KEY", engine._key)
    for number in (0, 1):
        with client(engine, number) as asked:
            check_guard(asked)
        assert engine._processes[number].socket.parent.stat().st_mode & 0o077 == 0
        assert [one for one in processes(engine, number).net_connections("inet") if one.status == "LISTEN"] == []


def test_responses_of_a_killed_server_are_generated_by_the_other_and_it_restarts(engine, caplog):
    model = model_of(1)
    engine.load(model, policy(1))
    requests, found = wanted(64), []
    killed = processes(engine, 1)
    group = [killed, *killed.children(recursive=True)]
    for one in engine.generate(requests, Sampling(1.0, 200, (2,)), lambda tokens: False):
        if not found:
            os.kill(killed.pid, signal.SIGKILL)
        found.append(one)
    assert sorted(place for place, _ in found) == list(range(64)), "nothing lost, nothing twice"
    check_logprobs(requests, dict(found), model, 1.0)
    assert gone(group, 120), "no process of the killed server is left"
    later = model_of(2)
    engine.load(later, policy(2))  # the other server has the weights; this one gets them when it is back
    wait_for_all(engine)
    assert served(engine)[1] == 0
    found = list(engine.generate(requests, Sampling(1.0, 24, STOPS)))
    check_logprobs(requests, dict(found), later, 1.0)
    assert served(engine)[1] >= 16
    messages = [record.message for record in caplog.records if record.name == "reval"]
    about = [one for one in messages if "replica-1" in one]
    assert sum("its process has ended (SIGKILL; its full output is in" in one for one in about) == 1
    assert sum("responds again and has loaded the current weights" in one for one in about) == 1
    assert not any("replica-0" in one for one in messages)


def test_a_dead_engine_core_is_replaced(engine):
    """The server then ends by itself."""
    engine.load(model_of(1), policy(1))
    server = processes(engine, 0)
    for one in server.children(recursive=True):
        one.kill()
    found = list(engine.generate(wanted(8), Sampling(1.0, 24, STOPS)))
    assert sorted(place for place, _ in found) == list(range(8))
    assert gone([server], 120)
    wait_for_all(engine)


def test_a_server_that_cannot_start_is_reported_and_none_is_left(tmp_path):
    settings = SETTINGS.model_copy(update={"max_model_len": 100_000})
    engine = VllmReplicas(settings, places(settings)[:1], tmp_path)
    before = set(processes_of(os.getpid()))
    with pytest.raises(Exception, match=r"the engine vllm cannot start .*100000.*engine-\d\.log"):
        engine.load(model_of(1), policy(1))
    assert gone([one for one in processes_of(os.getpid()) if one not in before], 120)
    assert engine._home is None


WHOLE = """
import os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from pathlib import Path
from tests.vllm.test_replicas import *
from reval_core import launch
from reval_core.engines.vllm import VllmEngine as Single

if __name__ == "__main__":
    dist.init_process_group("gloo")
    before = launch._group_variables()
    if dist.get_rank() == 0:
        one = SETTINGS.model_copy(update={"replicas": 1})
        engines = [
            Single(SETTINGS.model_copy(update={"replicas": None}), Path(sys.argv[1]) / "engine.log"),
            VllmReplicas(one, places(one), Path(sys.argv[1])),
        ]
        for engine in engines:
            engine.load(model_of(1), policy(1))
            assert len(list(engine.generate(wanted(4), Sampling(1.0, 4, STOPS)))) == 4
        seen = processes(engine, 0).environ()
        assert "VLLM_API_KEY" in seen
        assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_USE_AGENT_STORE"} & seen.keys()
        assert "TORCHELASTIC_USE_AGENT_STORE" in os.environ
        print("restored", launch._group_variables() == before, flush=True)
    total = torch.tensor(1.0)
    dist.all_reduce(total)
    print("sum", total.item(), flush=True)
    if dist.get_rank() == 0:
        print("engine", os.getpid(), flush=True)
    time.sleep(600)
"""


def test_vllm_starts_under_torchrun_and_ends_with_its_process(tmp_path):
    """Both kinds of engine in the first of two processes, whose group still works; then that process is killed."""
    (tmp_path / "whole.py").write_text(WHOLE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launched = subprocess.Popen(
        [sys.executable, *launcher, str(tmp_path / "whole.py"), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("w"),
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo"},
        start_new_session=True,
    )
    try:
        assert launched.stdout is not None
        lines = []
        while not any(one.startswith("engine") for one in lines):
            line = launched.stdout.readline()
            assert line, (tmp_path / "errors").read_text()[-3000:]
            lines.append(line.strip())
        assert "restored True" in lines
        run = psutil.Process(int(lines[-1].split()[1]))
        started = run.children(recursive=True)
        assert len(started) >= 3
        run.kill()
        assert gone(started, 300)
    finally:
        os.killpg(launched.pid, signal.SIGKILL)
        launched.wait()
