"""The engine of `vllm serve` endpoints, against minimal fake servers that fail on demand."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reval_core.config import VllmServerEngine
from reval_core.engines import vllm_server
from reval_core.engines.engine import Sampling
from reval_core.engines.response import Response
from reval_core.engines.vllm_server import VllmServers
from reval_core.engines.weight_source import checked
from reval_core.errors import InputError, RunStopped
from tests.models import tiny_model
from tests.responses import request

STOP = 2
SAMPLING = Sampling(1.0, 8, (STOP,))
POLICY, LATER = "a" * 64, "b" * 64
KEY = "sesame-4711"


def answer(prompt: list[int], seed: int) -> list[int]:
    """The response of every server to a request."""
    return [prompt[-1], 3 + seed, *([STOP] if seed % 2 else [5] * 6)]


class Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Ignore lost connections."""


class Server:
    """A server in threads of this process. A fault is called with the request's handler before it is handled."""

    def __init__(self, port: int = 0) -> None:
        self.version = "default"
        self.weights: list[str] = []
        """The weights that were loaded, by the name of their directory."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.most = self._now = 0
        self.delay = self.piece_delay = 0.0
        self.faults: dict[str, Callable[[Any], bool]] = {}
        """Faults by path; each returns whether it has handled the request itself."""
        self._lock = threading.Lock()
        self._http = Http(("127.0.0.1", port), handler(self))
        self.connections: list[Any] = []
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        return self._http.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def die(self) -> None:
        """Stop immediately and drop all connections."""
        self._http.shutdown()
        self._http.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(2)

    def load(self, method: str, arguments: dict[str, Any]) -> None:
        """As the worker extension: `take_weights` downloads and verifies them."""
        if method == "take_weights":
            with checked(**arguments):
                self.weights.append(arguments["source"].rsplit("/", 1)[1].removesuffix(".safetensors"))
            return
        directory = Path(arguments["weights_path"])
        assert method == "reload_weights"
        assert (directory / "model.safetensors").exists()
        self.weights.append(directory.name)

    def complete(self, http: Any, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append(body | {"version": self.version})
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self.delay)
            tokens = answer(body["prompt"], body["seed"])[: body["max_tokens"]]
            reason = "stop" if tokens[-1] == STOP else "length"
            if not body["stream"]:
                http.reply(200, {"choices": [choice(tokens, reason)]})
                return
            http.start(200)
            for place, token in enumerate(tokens):
                time.sleep(self.piece_delay)
                last = place == len(tokens) - 1
                http.piece({"choices": [choice([token], reason if last else None)]})
            http.wfile.write(b"data: [DONE]\n\n")
        finally:
            with self._lock:
                self._now -= 1


def choice(tokens: list[int], reason: str | None) -> dict[str, Any]:
    logprobs = {"token_logprobs": [-0.5 * token for token in tokens]}
    return {"text": "\u2028", "token_ids": tokens, "logprobs": logprobs, "finish_reason": reason}


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            server.connections.append(self.connection)

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, status: int, body: Any) -> None:
            content = json.dumps(body, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def start(self, status: int) -> None:
            self.close_connection = True
            self.send_response(status)
            self.send_header("Connection", "close")
            self.end_headers()

        def piece(self, body: Any) -> None:
            self.wfile.write(b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n")

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            server.headers.append(self.headers)
            server.paths.append(self.path)
            fault = server.faults.get(self.path)
            with suppress(OSError):
                if fault is not None and fault(self):
                    return
                if self.path == "/v1/completions":
                    server.complete(self, body)
                elif self.path == "/v1/models":
                    self.reply(200, {"data": [{"id": "served"}]})
                elif self.path == "/weight_info":
                    self.reply(200, {"weight_version": server.version})
                elif self.path == "/update_weight_version":
                    server.version = body["new_version"]
                    self.reply(200, {"success": True})
                elif self.path == "/collective_rpc":
                    server.load(body["method"], body["kwargs"])
                    self.reply(200, {"results": [None]})
                elif self.path.startswith(("/wake_up", "/sleep")):
                    self.reply(200, {})
                elif self.path == "/reset_prefix_cache":
                    self.reply(200, {"success": True})
                else:
                    self.reply(404, {"detail": "Not Found"})

    return Handler


def failing(times: int, status: int, message: str = "out of order") -> Callable[[Any], bool]:
    """A fault: the first `times` requests are answered with this status."""
    left = iter(range(times))

    def fault(http: Any) -> bool:
        if next(left, None) is None:
            return False
        http.reply(status, {"error": {"message": message, "code": status}})
        return True

    return fault


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(vllm_server, "TRIES", 3)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made = [Server(), Server()]
    yield made
    for server in made:
        server.die()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., VllmServers]]:
    made: list[VllmServers] = []

    def make(servers: list[Server], **settings: Any) -> VllmServers:
        urls = tuple(server.url for server in servers)
        section = VllmServerEngine(kind="vllm-server", urls=urls, **({"patience_seconds": 5.0} | settings))
        made.append(VllmServers(section, tmp_path / "weights", None))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def wanted(count: int) -> list[Response]:
    return [request([4, 6 + number], seed=number) for number in range(count)]


def expected(given: Response) -> Response:
    tokens = answer([*given.prompt_tokens, *given.tokens], given.seed)
    tokens = tokens[: SAMPLING.max_tokens - len(given.tokens)]
    return given.extended(tokens, [-0.5 * token for token in tokens], "stop" if tokens[-1] == STOP else "length")


def check_all(found: list[tuple[int, Response]], requests: list[Response]) -> None:
    """Every request was completed exactly once."""
    assert sorted(place for place, _ in found) == list(range(len(requests)))
    assert all(completion == expected(requests[place]) for place, completion in found)


def never(tokens: int) -> bool:
    return False


@pytest.mark.parametrize("enough", [None, never], ids=["whole", "streamed"])
def test_requests_go_to_the_server_with_the_fewest_in_flight(make, servers, enough):
    engine = make(servers, requests_per_server=4)
    for server in servers:
        server.delay = 0.15
    engine.load(tiny_model(), POLICY)
    requests = wanted(24)
    check_all(list(engine.generate(requests, SAMPLING, enough)), requests)
    assert [server.most for server in servers] == [4, 4]
    assert all(8 <= len(server.requests) <= 16 for server in servers)


def test_a_request_names_all_decoding_parameters(make, servers):
    engine = make(servers[:1])
    engine.load(tiny_model(), POLICY)
    interrupted = request([4, 6], seed=5, tokens=[7, 8])
    check_all(list(engine.generate([interrupted], Sampling(0.6, 8, (STOP, 9)))), [interrupted])
    sent = servers[0].requests[0]
    assert sent["prompt"] == [4, 6, 7, 8]
    assert (sent["max_tokens"], sent["temperature"], sent["seed"]) == (6, 0.6, 5)
    assert (sent["stop_token_ids"], sent["ignore_eos"], sent["model"]) == ([STOP, 9], True, "served")
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {name: sent[name] for name in neutral} == neutral


def test_each_policy_is_loaded_once_and_the_last_one_deleted(make, servers, tmp_path):
    engine = make(servers)
    for policy in (POLICY, POLICY, LATER):
        engine.load(tiny_model(), policy)
    names = [f"{'a' * 16}-bfloat16", f"{'b' * 16}-bfloat16"]
    assert [server.weights for server in servers] == [names, names]
    assert [directory.name for directory in (tmp_path / "weights").iterdir()] == names[1:]
    engine.close()
    engine.close()
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("way", ["http", "storage"])
def test_weights_reach_servers_without_a_shared_directory(make, servers, tmp_path, way):
    url = "http://127.0.0.1:0" if way == "http" else f"file://{tmp_path}/bucket"
    engine = make(servers, weights_url=url)
    requests = wanted(4)
    for policy in (POLICY, LATER, LATER):
        engine.load(tiny_model(), policy)
        check_all(list(engine.generate(requests, SAMPLING)), requests)
    names = [f"{POLICY[:16]}-bfloat16", f"{LATER[:16]}-bfloat16"]
    assert [server.weights for server in servers] == [names, names]
    engine.close()
    assert not list(tmp_path.glob("bucket/*"))


def test_a_server_without_the_worker_extension_stops_the_run_with_the_remedy(make, servers):
    message = "Worker failed with error ''GPUWorker' object has no attribute 'take_weights''"
    servers[0].faults["/collective_rpc"] = failing(9, 500, message)
    with pytest.raises(RunStopped, match=r"over a URL; start vllm serve with --worker-extension-cls"):
        make(servers[:1], weights_url="http://127.0.0.1:0").load(tiny_model(), POLICY)


def test_a_server_wakes_for_its_weights_before_it_wakes_its_cache(make, servers):
    engine = make(servers[:1])
    engine.load(tiny_model(), POLICY)
    endpoint = engine._servers[0].endpoint
    for policy in (POLICY, LATER):  # weights are lost in sleep, so the same ones are loaded again
        servers[0].paths.clear()
        engine._run(endpoint.sleep())
        engine.load(tiny_model(), policy)
        order = [path for path in servers[0].paths if path.startswith(("/sleep", "/wake", "/coll", "/reset"))]
        assert order == [
            "/sleep?level=2",
            "/wake_up?tags=weights",
            "/collective_rpc",
            "/wake_up?tags=kv_cache",
            "/reset_prefix_cache",
        ]


def test_runs_that_share_a_weights_directory_do_not_interfere(make, servers, tmp_path):
    shared = tmp_path / "shared"
    engine = make(servers, weights=str(shared))
    (shared / "other run").mkdir(parents=True)
    engine.load(tiny_model(), POLICY)
    assert len(list(shared.glob("*/*/model.safetensors"))) == 1
    engine.close()
    assert [directory.name for directory in shared.iterdir()] == ["other run"]


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("enough", [None, never], ids=["whole", "streamed"])
def test_failed_requests_are_retried(make, servers, status, enough, caplog):
    engine = make(servers[:1])
    engine.load(tiny_model(), POLICY)
    servers[0].faults["/v1/completions"] = failing(2, status)
    requests = wanted(6)
    check_all(list(engine.generate(requests, SAMPLING, enough)), requests)
    lost = [record for record in caplog.records if "does not respond" in record.message]
    assert bool(lost) == (status != 429)
    assert servers[0].weights == [f"{'a' * 16}-bfloat16"]  # its weights were checked, not loaded again


def test_responses_of_a_failed_server_are_regenerated_by_the_other(make, servers, caplog):
    caplog.set_level(logging.WARNING, "reval")
    engine = make(servers)
    engine.load(tiny_model(), POLICY)
    for server in servers:
        server.piece_delay = 0.05
    requests, found, counted = wanted(12), [], []

    def enough(tokens: int) -> bool:
        counted.append(tokens)
        return False

    for place, completion in engine.generate(requests, SAMPLING, enough):
        if not found:
            servers[0].die()
        found.append((place, completion))
    check_all(found, requests)
    assert counted[-1] == sum(len(completion.tokens) for _, completion in found)  # discarded tokens are not counted
    messages = [record.message for record in caplog.records if servers[0].url in record.message]
    assert len(messages) == 1
    assert "excluded" in messages[0]


def test_a_server_that_comes_back_gets_the_weights_before_any_request(make, servers, caplog):
    caplog.set_level(logging.WARNING, "reval")
    engine = make(servers[:1], requests_per_server=2)
    engine.load(tiny_model(), POLICY)
    servers[0].delay = 0.05
    requests, found, port = wanted(8), [], servers[0].port
    for place, completion in engine.generate(requests, SAMPLING):
        if not found:
            servers[0].die()
            threading.Timer(0.3, lambda: servers.append(Server(port))).start()
        found.append((place, completion))
    check_all(found, requests)
    name = f"{'a' * 16}-bfloat16"
    assert servers[-1].weights == [name]
    assert {request["version"] for request in servers[-1].requests} == {name}
    messages = [record.message for record in caplog.records if servers[0].url in record.message]
    assert ["does not respond" in line for line in messages] == [True, False]


def test_a_server_that_starts_late_is_excluded_until_it_responds(make, servers):
    port = servers[1].port
    servers[1].die()
    engine = make(servers)
    engine.load(tiny_model(), POLICY)
    assert len(servers[0].weights) == 1
    servers[0].delay = 0.1
    threading.Timer(0.2, lambda: servers.append(Server(port))).start()
    requests = wanted(20)
    settings = engine._settings.model_copy(update={"requests_per_server": 1})
    engine._settings = settings
    check_all(list(engine.generate(requests, SAMPLING)), requests)
    assert servers[-1].requests
    assert servers[-1].weights


def test_interrupted_responses_are_returned_as_partial(make, servers):
    engine = make(servers, requests_per_server=2)
    engine.load(tiny_model(), POLICY)
    for server in servers:
        server.piece_delay = 0.1
    requests = wanted(8)
    found = list(engine.generate(requests, SAMPLING, lambda tokens: tokens >= 14))
    assert sorted(place for place, _ in found) == list(range(8))
    ends = Counter(completion.finish_reason for _, completion in found)
    assert ends["stop"] >= 1
    assert ends["partial"] >= 4
    assert 14 <= sum(len(completion.tokens) for _, completion in found) <= 30
    for place, completion in found:
        whole = expected(requests[place])
        assert completion.tokens == whole.tokens[: len(completion.tokens)]
        assert len(completion.logprobs) == len(completion.tokens)
    assert sum(len(server.requests) for server in servers) < 8  # queued requests were never sent


def test_abandoned_generation_is_cancelled(make, servers):
    engine = make(servers)
    engine.load(tiny_model(), POLICY)
    servers[1].delay = 10_000.0  # waiting for this one would block forever
    generated = engine.generate(wanted(4), SAMPLING)
    next(generated)
    generated.close()
    servers[1].delay = 0.0
    requests = wanted(3)
    check_all(list(engine.generate(requests, SAMPLING)), requests)


def test_an_engine_can_be_closed_during_generation(make, servers):
    engine = make(servers)
    engine.load(tiny_model(), POLICY)
    servers[1].delay = 10_000.0
    generated = engine.generate(wanted(4), SAMPLING)
    next(generated)
    engine.close()
    generated.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "vllm servers"]


def test_a_server_without_development_endpoints_is_reported_with_the_remedy(make, servers):
    servers[1].faults["/collective_rpc"] = failing(100, 404)
    engine = make(servers)
    with pytest.raises(RunStopped, match=f"{servers[1].url}.*VLLM_SERVER_DEV_MODE=1"):
        engine.load(tiny_model(), POLICY)


def test_the_error_of_a_server_that_cannot_read_the_weights_names_their_directory(make, servers, tmp_path):
    servers[0].faults["/collective_rpc"] = failing(100, 500, "no such directory")
    engine = make(servers[:1], patience_seconds=1.0)
    with pytest.raises(RunStopped, match=f"weights in {tmp_path}/weights/a{{16}}-bfloat16 .*no such directory"):
        engine.load(tiny_model(), POLICY)
    assert servers[0].version == "none"


def test_a_rejected_request_stops_the_run(make, servers):
    engine = make(servers)
    engine.load(tiny_model(), POLICY)
    servers[0].faults["/v1/completions"] = failing(100, 400, "max_tokens=400 is too large")
    with pytest.raises(RunStopped, match=f"{servers[0].url} rejected .* max_tokens=400 is too large"):
        list(engine.generate(wanted(4), SAMPLING))
    servers[0].faults.clear()
    engine.load(tiny_model(), POLICY)
    check_all(list(engine.generate(wanted(4), SAMPLING)), wanted(4))


def test_a_run_stops_when_no_server_responds_for_too_long(make, servers):
    engine = make(servers, patience_seconds=1.0)
    engine.load(tiny_model(), POLICY)
    for server in servers:
        server.die()
    with pytest.raises(RunStopped, match=f"no server .* 1 s .*{servers[0].url}, {servers[1].url}; .*Connect"):
        list(engine.generate(wanted(4), SAMPLING))
    with pytest.raises(RunStopped, match="no server has responded"):
        engine.load(tiny_model(), LATER)


def test_a_server_that_fails_all_completions_stops_the_run(make, servers):
    engine = make(servers[:1], patience_seconds=1.0)
    engine.load(tiny_model(), POLICY)
    servers[0].faults["/v1/completions"] = failing(1000, 500)
    with pytest.raises(RunStopped, match="out of order"):
        list(engine.generate(wanted(4), SAMPLING))


def test_a_request_that_kills_every_server_stops_the_run(make, servers):
    engine = make(servers)
    engine.load(tiny_model(), POLICY)

    def break_off(http: Any) -> bool:
        http.start(200)
        http.piece({"choices": [choice([3], None)]})
        return True

    for server in servers:
        server.faults["/v1/completions"] = break_off
    engine._settings = engine._settings.model_copy(update={"patience_seconds": 60.0})
    with pytest.raises(RunStopped, match=r"failed 3 times.*the stream ended"):
        list(engine.generate(wanted(1), SAMPLING, never))


def test_an_error_in_a_stream_is_a_server_failure(make, servers):
    engine = make(servers[:1])
    engine.load(tiny_model(), POLICY)
    left = iter([True, True])

    def break_off(http: Any) -> bool:
        if next(left, None) is None:
            return False
        http.start(200)
        http.piece({"choices": [choice([3], None)]})
        http.piece({"error": {"message": "the engine died", "code": 500}})
        return True

    servers[0].faults["/v1/completions"] = break_off
    requests = wanted(3)
    check_all(list(engine.generate(requests, SAMPLING, never)), requests)


def test_the_key_is_sent_and_never_shown(make, servers, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "reval")
    monkeypatch.setenv("SERVERS_KEY", KEY)
    engine = make(servers[:1], api_key_variable="SERVERS_KEY", patience_seconds=1.0)
    engine.load(tiny_model(), POLICY)
    list(engine.generate(wanted(1), SAMPLING))
    assert {headers["Authorization"] for headers in servers[0].headers} == {f"Bearer {KEY}"}
    for status in (500, 401, 404):
        servers[0].faults["/v1/completions"] = failing(1000, status, f"no access with Bearer {KEY}")
        engine.load(tiny_model(), POLICY)
        with pytest.raises(RunStopped, match="no access") as caught:
            list(engine.generate(wanted(1), SAMPLING))
        assert KEY not in str(caught.value)
        assert KEY not in str(caught.value.__cause__)
    assert "no access" in caplog.text
    assert KEY not in caplog.text


def test_a_missing_or_invalid_key_is_rejected_when_the_engine_is_constructed(make, servers, monkeypatch):
    monkeypatch.delenv("SERVERS_KEY", raising=False)
    with pytest.raises(InputError, match="SERVERS_KEY is not set"):
        make(servers, api_key_variable="SERVERS_KEY")
    monkeypatch.setenv("SERVERS_KEY", f"{KEY}\nand more")
    with pytest.raises(InputError, match="SERVERS_KEY holds characters that are not valid") as caught:
        make(servers, api_key_variable="SERVERS_KEY")
    assert KEY not in str(caught.value)


def test_a_rejected_key_is_reported_with_the_setting(make, servers):
    servers[0].faults["/v1/models"] = failing(100, 401, "Unauthorized")
    with pytest.raises(RunStopped, match=r"Unauthorized; set engine\.api_key_variable"):
        make(servers[:1]).load(tiny_model(), POLICY)


def test_a_server_that_returns_no_token_ids_stops_the_run(make, servers):
    engine = make(servers[:1])
    engine.load(tiny_model(), POLICY)

    def bare(http: Any) -> bool:
        http.reply(200, {"choices": [{"text": "12", "finish_reason": "stop"}]})
        return True

    servers[0].faults["/v1/completions"] = bare
    with pytest.raises(RunStopped, match=r"no token ids with log-probs; use vLLM 0\.32"):
        list(engine.generate(wanted(1), SAMPLING))
