"""Generation with running `vllm serve` endpoints, in a separate environment or on other machines.

The servers belong to one run at a time, because they hold its weights. When a server fails, the responses in flight
there are regenerated, usually by other servers. When it responds again, the weights are loaded into it first.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import platform
import shutil
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from reval_core.config import VllmServerEngine
from reval_core.engines.engine import Enough, Sampling
from reval_core.engines.response import Response
from reval_core.engines.vllm_endpoint import Busy, Endpoint, Part, Unavailable, Weights
from reval_core.engines.weight_source import Offer, make_offer, sha256_of
from reval_core.engines.weights import WEIGHTS, write_weights
from reval_core.errors import InputError, RunStopped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("reval")

FIRST_DELAY, LAST_DELAY = 0.5, 30.0
"""Seconds before a failed server is retried; the delay doubles with each failure."""


CLOSE_SECONDS = 30.0
"""How long `close` waits for connections that do not end."""

TRIES = 10
"""How often the same request may fail before it is considered the cause."""


class VllmServers:
    """The engine of `engine.kind: vllm-server`.

    All HTTP traffic runs in one thread with an event loop, from the first `load` to `close`.
    """

    name = "vllm-server"
    streams = True

    def __init__(self, settings: VllmServerEngine, weights: Path, code: Path | None = None, seed: int = 0) -> None:
        """Construct an engine without connecting to the servers.

        Args:
            settings: The engine section of the config.
            weights: The directory that servers read weights from, unless the settings name one.
            code: The directory of a model with custom code.
            seed: The seed of the thresholds that round float32 weights to bfloat16.

        Raises:
            InputError: The environment variable for the API key is not set or not usable.
        """
        self._key = api_key(settings.api_key_variable)
        self._settings = settings
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        # Each run has its own subdirectory of a shared directory, with a stable name for resumed runs.
        self._own = hashlib.sha256(f"{platform.node()}:{weights.absolute()}".encode()).hexdigest()[:16]
        self._directory = (
            weights.absolute() if settings.weights is None else Path(settings.weights).absolute() / self._own
        )
        self._offer: Offer | None = None
        self._code = code
        self._seed = seed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._servers: list[Server] = []
        self._sync_tasks: list[asyncio.Task[None]] = []
        self._weights: Weights | None = None
        self._changed = asyncio.Event()
        """Notifies coroutines in the loop of any state change."""
        self._fatal: Exception | None = None
        """An error that a retry cannot fix."""

    def load(self, model: PreTrainedModel, policy: str) -> None:
        """Load the weights of `model` into all servers concurrently; failed servers load them when they recover.

        Raises:
            RunStopped: No server responds within `patience_seconds`, or a server lacks the development endpoints.
        """
        if self._loop is None:
            self._open()
        name = f"{policy[:16]}-{self._settings.dtype}"
        if self._weights is None or self._weights.name != name or not self._weights.directory.exists():
            directory = self._directory / name
            write_weights(directory, model, self._seed, self.dtype, self._code)
            self._weights = Weights(name, directory, *self._way(directory))
        self._run(self._sync())
        kept = {self._weights.directory} | {server.reading for server in self._servers}
        for directory in set(self._directory.iterdir()) - kept:
            shutil.rmtree(directory, ignore_errors=True)

    def generate(
        self, requests: Sequence[Response], sampling: Sampling, enough: Enough | None = None
    ) -> Iterator[tuple[int, Response]]:
        """Yield each response as it finishes on any server.

        Raises:
            RunStopped: No server responds within `patience_seconds`, or a server rejects a request.
        """
        loop = self._loop
        assert loop is not None, "load() must be called first"
        batch = _Batch(requests, sampling, streamed=enough is not None)
        work = asyncio.run_coroutine_threadsafe(self._serve(batch), loop)
        tokens = 0
        try:
            while not (enough is not None and enough(tokens)) and (update := batch.updates.get()) is not None:
                tokens += update.tokens
                if update.response is not None:
                    yield update.place, update.response
        finally:
            batch.cancelled = True
            if not work.done():
                loop.call_soon_threadsafe(self._changed.set)
            if not work.cancelled():  # it is if the engine was closed meanwhile
                work.result()
        yield from batch.remaining()

    def release_memory(self) -> None:
        """Does nothing: the servers do not share memory with the learner."""

    def close(self) -> None:
        """Disconnect from the servers, which keep running, and delete the published weights."""
        if self._loop is None or self._thread is None:
            return
        with suppress(TimeoutError):  # the loop's thread ends with this process at the latest
            self._run(self._disconnect(), CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()
        if self._offer is not None:
            self._offer.close()
        self._loop = self._thread = self._weights = self._offer = None
        shutil.rmtree(self._directory, ignore_errors=True)

    def _way(self, directory: Path) -> tuple[str, dict[str, Any]]:
        """The method of vLLM's workers that loads the weights in `directory`, and its arguments."""
        if self._offer is None:
            return "reload_weights", {"weights_path": str(directory)}
        url = self._offer.publish(directory / WEIGHTS, f"{directory.name}.safetensors")
        sha256 = sha256_of(directory / WEIGHTS)
        return "take_weights", {"source": url, "sha256": sha256, "token": self._offer.token}

    def _open(self) -> None:
        if self._settings.weights_url is not None:
            self._offer = _offer_at(self._settings.weights_url, self._own)
        shutil.rmtree(self._directory, ignore_errors=True)  # left behind by a killed run
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm servers")
        self._thread.start()
        self._run(self._connect())

    def _run(self, work: Coroutine[Any, Any, None], seconds: float | None = None) -> None:
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            future.result(seconds)
        except BaseException:  # including an interrupt
            future.cancel()
            raise

    def _endpoints(self) -> list[Endpoint]:
        patience = self._settings.patience_seconds
        return [Endpoint(url, self._key, patience) for url in self._settings.urls]

    async def _connect(self) -> None:
        self._servers = [Server(endpoint, FIRST_DELAY) for endpoint in self._endpoints()]
        self._sync_tasks = [asyncio.create_task(self._keep_synced(server)) for server in self._servers]

    async def _disconnect(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            await server.endpoint.close()

    async def _sync(self) -> None:
        """Wait until every server has loaded the weights or failed, and at least one has loaded them."""
        self._fatal = None
        for server in self._servers:
            server.ready = False
            if server.failing_since is not None:
                server.failing_since = _now()
            server.unsynced.set()
        while not any(server.ready for server in self._servers) or any(
            not server.ready and server.failing_since is None for server in self._servers
        ):
            self._check()
            await self._change()

    async def _keep_synced(self, server: Server) -> None:
        """Load the weights into a server after each `load`, and when it responds again after a failure."""
        while True:
            await server.unsynced.wait()
            await asyncio.sleep(server.retry_at - _now())
            server.unsynced.clear()
            assert self._weights is not None
            server.reading = self._weights.directory
            try:
                await server.endpoint.take(self._weights)
            except Unavailable as error:
                self._failed(server, error)
            except Exception as error:
                self._fatal = error
            else:
                server.ready = not server.unsynced.is_set()  # otherwise there are newer weights
                if server.reported:
                    server.reported = False
                    log.warning("%s: responds again and has loaded the current weights", server.endpoint.url)
            finally:
                server.reading = None
            self._changed.set()

    async def _serve(self, batch: _Batch) -> None:
        """Distribute the requests of a batch until all are completed or it is cancelled."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            while batch.parts and not batch.cancelled:
                self._check()
                while batch.waiting and (server := self._least_loaded()) is not None:
                    server.in_flight += 1
                    task = asyncio.create_task(self._request(server, batch, batch.waiting.popleft()))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await self._change()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            batch.updates.put(None)

    async def _request(self, server: Server, batch: _Batch, place: int) -> None:
        """Request a response from a server. On failure, discard the partial response and requeue the request."""
        part = batch.parts[place] = Part(batch.requests[place])
        try:
            choices = server.endpoint.choices(batch.requests[place], batch.sampling, batch.streamed)
            async with aclosing(choices):
                async for choice in choices:
                    server.failing_since = None
                    batch.updates.put(_Update(place, part.add(choice)))
            batch.updates.put(_Update(place, 0, part.whole()))
            del batch.parts[place]
            server.delay = FIRST_DELAY
        except Unavailable as error:
            batch.updates.put(_Update(place, -len(part.tokens)))
            batch.parts[place] = Part(batch.requests[place])
            batch.waiting.appendleft(place)
            batch.failures[place] += not isinstance(error, Busy)
            if batch.failures[place] == TRIES:
                self._fatal = RunStopped(
                    f"engine.urls: the same request has failed {TRIES} times; last error: {error}"
                )
            if server.ready:  # otherwise its failure is already known
                self._failed(server, error)
        except Exception as error:
            self._fatal = error
        finally:
            server.in_flight -= 1
            self._changed.set()

    def _least_loaded(self) -> Server | None:
        limit = self._settings.requests_per_server
        free = [server for server in self._servers if server.ready and server.in_flight < limit]
        return min(free, key=lambda server: server.in_flight, default=None)

    def _failed(self, server: Server, error: Unavailable) -> None:
        """Exclude a server until a retry succeeds, with exponential backoff."""
        server.fail(str(error))
        if not server.reported and not isinstance(error, Busy):
            server.reported = True
            log.warning("%s: does not respond (%s); excluded until it does", server.endpoint.url, error)
        self._changed.set()

    def _check(self) -> None:
        """Raise the error that stops the run, if there is one."""
        if self._fatal is not None:
            raise self._fatal
        failing = [server for server in self._servers if not server.ready and server.failing_since is not None]
        if len(failing) < len(self._servers):
            return
        latest = max(failing, key=lambda server: server.failing_since or 0.0)
        if _now() - (latest.failing_since or 0.0) > self._settings.patience_seconds:
            raise self._silence(latest)

    def _silence(self, latest: Server) -> RunStopped:
        """The error when no server responds; `latest` is the one that failed last."""
        urls, patience = ", ".join(self._settings.urls), self._settings.patience_seconds
        return RunStopped(
            f"engine.urls: no server has responded for {patience:g} s ({urls}; last error, from "
            f"{latest.endpoint.url}: {latest.reason}); start them (docs/engines.md), then run the same command "
            "again"
        )

    async def _change(self) -> None:
        """Wait for a state change, at most 0.2 s."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):  # unlike wait_for, it loses no concurrent cancellation
                await self._changed.wait()


@dataclass
class Server:
    """An endpoint and its state."""

    endpoint: Endpoint
    delay: float
    """Seconds before it is retried after the next failure."""
    ready: bool = False
    """Whether it responds and holds the weights."""
    unsynced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its weights must be checked."""
    reading: Path | None = None
    """The directory of the weights that it is loading."""
    in_flight: int = 0
    """The number of requests in flight."""
    failing_since: float | None = None
    """The time of its first failure since it last succeeded."""
    reason: str = ""
    """The reason of its last failure."""
    reported: bool = False
    """Whether its failure has been logged."""
    retry_at: float = 0.0

    def fail(self, reason: str) -> None:
        """Record a failure and schedule a retry."""
        self.ready, self.reason = False, reason
        if self.failing_since is None:
            self.failing_since = _now()
        self.retry_at, self.delay = _now() + self.delay, min(2 * self.delay, LAST_DELAY)
        self.unsynced.set()


@dataclass(frozen=True)
class _Update:
    """Progress of a request, sent from the event loop to the caller's thread."""

    place: int
    tokens: int
    """The number of new tokens; negative if tokens were discarded."""
    response: Response | None = None


class _Batch:
    """The requests of one call of `generate` and their state."""

    def __init__(self, requests: Sequence[Response], sampling: Sampling, streamed: bool) -> None:
        self.requests = requests
        self.sampling = sampling
        self.streamed = streamed
        self.waiting = deque(range(len(requests)))
        self.parts = {place: Part(request) for place, request in enumerate(requests)}
        """The parts of the responses that are not finished."""
        self.updates: SimpleQueue[_Update | None] = SimpleQueue()
        """None marks the end."""
        self.cancelled = False
        self.failures = [0] * len(requests)
        """The number of failures of each request."""

    def remaining(self) -> Iterator[tuple[int, Response]]:
        """After all work has ended: responses that were not consumed yet, and partial ones."""
        while not self.updates.empty():
            update = self.updates.get()
            if update is not None and update.response is not None:
                yield update.place, update.response
        yield from ((place, part.now()) for place, part in self.parts.items())


def _offer_at(url: str, directory: str) -> Offer:
    """The place at `url`. Raises RunStopped if it cannot be used."""
    try:
        return make_offer(url, directory)
    except ImportError as error:
        raise RunStopped(f"engine.weights_url: {url} cannot be used: {error}") from error
    except OSError as error:
        raise RunStopped(f"engine.weights_url: {url} cannot be used ({error})") from error


def api_key(variable: str | None) -> str | None:
    """The API key in an environment variable.

    Raises:
        InputError: The variable is not set or holds no valid key. The message does not contain the value.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key or not key.isascii() or not key.isprintable():
        state = "holds characters that are not valid in an API key" if key else "is not set"
        raise InputError(
            f"engine.api_key_variable: the environment variable {variable} {state}; set it to the servers' API key"
        )
    return key


def _now() -> float:
    return time.monotonic()
