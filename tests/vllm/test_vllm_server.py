"""The engine of `vllm serve` endpoints with real servers on the CPU: two servers of a tiny model.

tests/unit/engines/test_vllm_server.py covers other failures of servers, without vLLM.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from transformers import PreTrainedModel

from reval_core.config import TinyModel, VllmServerEngine
from reval_core.engines import vllm_server
from reval_core.engines.engine import Sampling
from reval_core.engines.response import Response
from reval_core.engines.vllm_server import VllmServers
from reval_core.errors import RunStopped
from reval_core.model.loading import make_tiny_model, make_tiny_tokenizer, save_model
from reval_core.model.scoring import score
from reval_core.model.token_batch import collate
from tests.models import random_rows
from tests.responses import request

SETTINGS = TinyModel(layers=2, width=128, heads=4, feed_forward=256)
STOPS = (2, 7, 8)
KEY = "sesame-4711"
START_SECONDS = 240
REPOSITORY = Path(__file__).parents[2]


def model_of(seed: int) -> PreTrainedModel:
    """A model whose distributions are far from uniform."""
    model = make_tiny_model(SETTINGS, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


class Served:
    """A `vllm serve` process in its own process group."""

    def __init__(self, directory: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        log.parent.mkdir()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        own = {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_API_KEY": KEY,
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "TMPDIR": str(log.parent),
        }
        options = {
            "model": directory,
            "host": "127.0.0.1",
            "port": self.port,
            "dtype": "float32",
            "max-num-seqs": 64,
            "kv-cache-memory-bytes": 200_000_000,
            "logprobs-mode": "processed_logprobs",
            "worker-extension-cls": "reval_core.engines.vllm_worker.Worker",
            "middleware": "reval_core.engines.vllm_guard.Guard",
        }
        flags = ["--enforce-eager", "--no-enable-chunked-prefill", "--skip-tokenizer-init"]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"),
                *(f"--{name}={value}" for name, value in options.items()),
                *flags,
            ],
            env=os.environ | own,
            cwd=log.parent,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it responds."""
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise AssertionError(f"vllm serve did not start:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """Kill the server and all processes that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    directory = tmp_path_factory.mktemp("served")
    save_model(model_of(0), make_tiny_tokenizer(SETTINGS.characters), directory / "model")
    servers = [Served(directory / "model", directory / f"host-{number}/log") for number in (0, 1)]
    try:
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture(params=[None])
def engine(
    served: list[Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[VllmServers]:
    """The engine; its parameter is `weights_url`."""
    monkeypatch.setenv("SERVERS_KEY", KEY)
    settings = VllmServerEngine(
        kind="vllm-server",
        urls=tuple(server.url for server in served),
        dtype="float32",
        api_key_variable="SERVERS_KEY",
        weights_url=request.param,
        patience_seconds=60.0,
    )
    engine = VllmServers(settings, tmp_path / "weights", None)
    yield engine
    engine.close()


def wanted(count: int, seed: int = 0) -> list[Response]:
    return [request(row.tolist(), place) for place, row in enumerate(random_rows(count, 1, 12, seed))]


def check_logprobs(
    requests: list[Response], found: dict[int, Response], model: PreTrainedModel, temperature: float
) -> None:
    """The engine's log-probs equal the trainer's."""
    assert sorted(found) == list(range(len(requests)))
    before = {place: len(requests[place].tokens) for place in found}
    places = [place for place in found if len(found[place].tokens) > before[place]]
    prompts = [np.array([*requests[place].prompt_tokens, *requests[place].tokens]) for place in places]
    new = [np.array(found[place].tokens[before[place] :]) for place in places]
    with torch.inference_mode():
        scores = score(model, collate(prompts, new), temperature)
    for row, place, tokens in zip(scores.logprobs, places, new, strict=True):
        np.testing.assert_allclose(found[place].logprobs[before[place] :], row[: len(tokens)], atol=1e-4)


def check_guard(client: httpx.Client) -> None:
    """Every route of the server but /health responds with 401 without the right key, however it is asked."""
    key = {"Authorization": f"Bearer {KEY}"}
    paths = client.get("/openapi.json", headers=key).json()["paths"]
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert {path for _, path in routes} >= {
        "/collective_rpc",
        "/sleep",
        "/update_weights",
        "/update_weight_version",
        "/v1/completions",
    }
    routes += [
        ("GET", "/openapi.json"),
        ("GET", "/metrics"),
        ("OPTIONS", "/collective_rpc"),
        ("POST", "//collective_rpc"),
    ]
    body = {"method": "reload_weights"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        open_ = {
            path
            for method, path in routes
            if client.request(method, path, json=body, headers=headers).status_code != 401
        }
        assert open_ == {"/health"}
    assert client.get("/is_sleeping", headers=key).json() == {"is_sleeping": False}


def check_ends(found: dict[int, Response], longest: int) -> None:
    """A response ends with its first stop token or at its maximum length."""
    for one in found.values():
        stops = [place for place, token in enumerate(one.tokens) if token in STOPS]
        if one.finish_reason == "stop":
            assert stops == [len(one.tokens) - 1]
        else:
            assert one.finish_reason == "length"
            assert not stops
            assert len(one.tokens) == longest


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("enough", [None, lambda tokens: False], ids=["whole", "streamed"])
def test_the_log_probs_equal_the_trainers(engine, temperature, enough):
    model = model_of(1)
    engine.load(model, f"{1:064x}")
    requests = wanted(24)
    found = dict(engine.generate(requests, Sampling(temperature, 24, STOPS), enough))
    check_logprobs(requests, found, model, temperature)
    check_ends(found, 24)
    assert {one.finish_reason for one in found.values()} == {"stop", "length"}


OVER_HTTP = "http://127.0.0.1:0"


@pytest.mark.parametrize("engine", [None, OVER_HTTP], indirect=True, ids=["shared directory", "HTTP"])
def test_responses_are_generated_with_the_current_weights(engine):
    """Back and forth: neither old weights nor their KV cache are used."""
    requests = wanted(8)
    for seed in (1, 2, 1):
        model = model_of(seed)
        engine.load(model, f"{seed:016x}" + "0" * 48)
        found = dict(engine.generate(requests, Sampling(1.0, 12, STOPS)))
        check_logprobs(requests, found, model, 1.0)


def test_a_response_continues_after_its_written_tokens(engine):
    model = model_of(1)
    engine.load(model, f"{1:016x}" + "0" * 48)
    requests = [request([4, 5], seed, tokens=[9, 10, 11]) for seed in range(6)]
    found = dict(engine.generate(requests, Sampling(1.0, 8, STOPS)))
    check_logprobs(requests, found, model, 1.0)
    check_ends(found, 8)
    assert all(one.tokens[:3] == [9, 10, 11] for one in found.values())


def test_interrupted_responses_are_returned_as_partial_and_the_servers_keep_working(engine):
    model = model_of(1)
    engine.load(model, f"{1:016x}" + "0" * 48)
    requests = wanted(24)
    found = dict(engine.generate(requests, Sampling(1.0, 200, (2,)), lambda tokens: tokens >= 150))
    check_logprobs(requests, found, model, 1.0)
    assert sum(one.finish_reason == "partial" for one in found.values()) >= 12
    assert 150 <= sum(len(one.tokens) for one in found.values()) < 24 * 100
    later = model_of(2)
    engine.load(later, f"{2:016x}" + "0" * 48)  # while aborted requests may still be running
    found = dict(engine.generate(requests, Sampling(1.0, 8, STOPS)))
    check_logprobs(requests, found, later, 1.0)


@pytest.mark.parametrize("engine", [OVER_HTTP], indirect=True)
def test_weights_that_change_on_their_way_are_refused(engine, served, monkeypatch):
    """Then no response is generated with them."""
    monkeypatch.setattr(vllm_server, "sha256_of", lambda file: f"{0:064x}")
    engine._settings = engine._settings.model_copy(update={"patience_seconds": 3.0})
    with pytest.raises(RunStopped, match="no server has responded"):
        engine.load(model_of(1), f"{3:016x}" + "0" * 48)
    assert all(f"instead of {0:064x}" in server.log.read_text() for server in served)


def test_every_route_needs_the_key(served):
    with httpx.Client(base_url=served[0].url, trust_env=False) as client:
        check_guard(client)


def test_a_server_without_a_key_does_not_start(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", "import reval_core.engines.vllm_guard"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert "set the environment variable VLLM_API_KEY" in done.stderr


def test_responses_of_a_killed_server_are_regenerated_by_the_other(engine, served, caplog):
    model = model_of(1)
    engine.load(model, f"{1:016x}" + "0" * 48)
    requests, found = wanted(48), []
    for one in engine.generate(requests, Sampling(1.0, 100, (2,)), lambda tokens: False):
        if not found:
            served[1].kill()
        found.append(one)
    assert sorted(place for place, _ in found) == list(range(48))
    assert [served[1].url in record.message for record in caplog.records if record.name == "reval"] == [True]
    check_logprobs(requests, dict(found), model, 1.0)
