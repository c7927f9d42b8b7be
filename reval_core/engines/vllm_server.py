"""Generation by running `vllm serve` endpoints, in an environment or on machines of their own.

The servers belong to one run at a time: they hold the weights that it gave them. One that dies costs the responses
that were under way there, which others make again; when it answers again, it is given the weights first.
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
from reval_core.engines.engine import Completion, Enough, Request, Sampling
from reval_core.engines.vllm_endpoint import Busy, Endpoint, Part, Unavailable
from reval_core.engines.weights import write_weights
from reval_core.errors import InputError, RunStopped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("reval")

FIRST_DELAY, LAST_DELAY = 0.5, 30.0
"""Seconds before a server that failed is asked again; they double from one failure to the next."""


CLOSE_SECONDS = 30.0
"""How long closing waits for connections that do not end."""

TRIES = 10
"""How often the same request may break off before it is taken for the cause."""


class VllmServers:
    """All HTTP happens in one thread with an event loop, from the first `load` to `close`."""

    name = "vllm-server"
    streams = True

    def __init__(self, settings: VllmServerEngine, weights: Path, code: Path | None = None, seed: int = 0) -> None:
        """`weights` is the folder that servers read, if the settings name none; `code` that of a model's own code.

        seed: of the thresholds that float32 weights are rounded to bfloat16 by.
        Raises InputError if the environment variable for the API key holds none.
        """
        self._key = api_key(settings.api_key_variable)
        self._settings = settings
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        # In a folder that several runs share, each has a place, which it finds again after it was killed.
        own = hashlib.sha256(f"{platform.node()}:{weights.absolute()}".encode()).hexdigest()[:16]
        self._directory = (
            weights.absolute() if settings.weights is None else Path(settings.weights).absolute() / own
        )
        self._code = code
        self._seed = seed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._servers: list[_Server] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._weights: _Weights | None = None
        self._changed = asyncio.Event()
        """Something happened that whoever waits in the loop may have waited for."""
        self._fatal: Exception | None = None
        """What a server answered that asking again cannot mend."""

    def load(self, model: PreTrainedModel, policy: str) -> None:
        """Have every server that answers take the weights of `model`, side by side; the others, when they answer.

        Raises RunStopped if none answers within the settings' patience, or one was not started for this.
        """
        if self._loop is None:
            self._open()
        name = f"{policy[:16]}-{self._settings.dtype}"
        if self._weights is None or self._weights.name != name:
            weights = _Weights(name, self._directory / name)
            write_weights(weights.directory, model, self._seed, self.dtype, self._code)
            self._weights = weights
        self._run(self._sync())
        kept = {self._weights.directory} | {server.reading for server in self._servers}
        for directory in set(self._directory.iterdir()) - kept:
            shutil.rmtree(directory, ignore_errors=True)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, enough: Enough | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Each request's completion as it ends, from whichever server.

        Raises RunStopped if no server answers within the settings' patience, or one refuses a request.
        """
        loop = self._loop
        assert loop is not None, "load() gives the servers their weights"
        batch = _Batch(requests, sampling, streamed=enough is not None)
        work = asyncio.run_coroutine_threadsafe(self._serve(batch), loop)
        tokens = 0
        try:
            while not (enough is not None and enough(tokens)) and (news := batch.news.get()) is not None:
                tokens += news.tokens
                if news.completion is not None:
                    yield news.place, news.completion
        finally:
            batch.called_off = True
            if not work.done():
                loop.call_soon_threadsafe(self._changed.set)
            if not work.cancelled():  # as it is when the engine was closed meanwhile
                work.result()
        yield from batch.rest()

    def rest(self) -> None:
        """The servers' memory is not the learner's."""

    def close(self) -> None:
        """Let go of the servers, which run on, and delete the weights that they were given."""
        if self._loop is None or self._thread is None:
            return
        with suppress(TimeoutError):  # the loop's thread ends with this process at the latest
            self._run(self._let_go(), CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()
        self._loop = self._thread = self._weights = None
        shutil.rmtree(self._directory, ignore_errors=True)

    def _open(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)  # what a run that was killed has left
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm servers")
        self._thread.start()
        self._run(self._connect())

    def _run(self, work: Coroutine[Any, Any, None], seconds: float | None = None) -> None:
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            future.result(seconds)
        except BaseException:  # an interrupt too
            future.cancel()
            raise

    async def _connect(self) -> None:
        patience = self._settings.patience_seconds
        endpoints = [Endpoint(url, self._key, patience) for url in self._settings.urls]
        self._servers = [_Server(endpoint, FIRST_DELAY) for endpoint in endpoints]
        self._keepers = [asyncio.create_task(self._keep(server)) for server in self._servers]

    async def _let_go(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            await server.endpoint.close()

    async def _sync(self) -> None:
        """Wait until every server has the weights or has failed to take them, and one has them."""
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

    async def _keep(self, server: _Server) -> None:
        """Bring the weights to a server after each `load`, and when it answers again after a failure."""
        while True:
            await server.unsynced.wait()
            await asyncio.sleep(server.retry_at - _now())
            server.unsynced.clear()
            assert self._weights is not None
            server.reading = self._weights.directory
            try:
                await server.endpoint.take(self._weights.name, self._weights.directory)
            except Unavailable as error:
                self._failed(server, error)
            except Exception as error:
                self._fatal = error
            else:
                server.ready = not server.unsynced.is_set()  # else there were new ones meanwhile
                if server.reported:
                    server.reported = False
                    log.warning("%s: answers again, and has the run's weights", server.endpoint.url)
            finally:
                server.reading = None
            self._changed.set()

    async def _serve(self, batch: _Batch) -> None:
        """Hand out the requests of a batch until all are answered, or it is called off."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            while batch.parts and not batch.called_off:
                self._check()
                while batch.waiting and (server := self._freest()) is not None:
                    server.under_way += 1
                    task = asyncio.create_task(self._ask(server, batch, batch.waiting.popleft()))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await self._change()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            batch.news.put(None)

    async def _ask(self, server: _Server, batch: _Batch, place: int) -> None:
        """Have a server make a response; if it fails, what it made of it is void, and the request waits again."""
        part = batch.parts[place] = Part()
        try:
            choices = server.endpoint.choices(batch.requests[place], batch.sampling, batch.streamed)
            async with aclosing(choices):
                async for choice in choices:
                    server.failing_since = None
                    batch.news.put(_News(place, part.add(choice)))
            batch.news.put(_News(place, 0, part.whole()))
            del batch.parts[place]
            server.delay = FIRST_DELAY
        except Unavailable as error:
            batch.news.put(_News(place, -len(part.tokens)))
            batch.parts[place] = Part()
            batch.waiting.appendleft(place)
            batch.failures[place] += not isinstance(error, Busy)
            if batch.failures[place] == TRIES:
                self._fatal = RunStopped(
                    f"engine.urls: one request has failed {TRIES} times, at last with: {error}"
                )
            if server.ready:  # else this failure is the same as the last one
                self._failed(server, error)
        except Exception as error:
            self._fatal = error
        finally:
            server.under_way -= 1
            self._changed.set()

    def _freest(self) -> _Server | None:
        limit = self._settings.requests_per_server
        free = [server for server in self._servers if server.ready and server.under_way < limit]
        return min(free, key=lambda server: server.under_way, default=None)

    def _failed(self, server: _Server, error: Unavailable) -> None:
        """Leave a server out until it was asked again, each time later."""
        server.fail(str(error))
        if not server.reported and not isinstance(error, Busy):
            server.reported = True
            log.warning("%s: does not answer (%s); it is left out until it does", server.endpoint.url, error)
        self._changed.set()

    def _check(self) -> None:
        """Raise what stops the run, if something does."""
        if self._fatal is not None:
            raise self._fatal
        failing = [server for server in self._servers if not server.ready and server.failing_since is not None]
        if len(failing) < len(self._servers):
            return
        latest = max(failing, key=lambda server: server.failing_since or 0.0)
        if _now() - (latest.failing_since or 0.0) > self._settings.patience_seconds:
            urls, patience = ", ".join(self._settings.urls), self._settings.patience_seconds
            raise RunStopped(
                f"engine.urls: no server has answered for {patience:g} s ({urls}; the last reason, from "
                f"{latest.endpoint.url}: {latest.reason}); start them (docs/engines.md), then give the same command"
            )

    async def _change(self) -> None:
        """Wait for something to change, if only the time."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):  # unlike wait_for, it loses no cancellation that comes with the change
                await self._changed.wait()


@dataclass(frozen=True)
class _Weights:
    """What servers are to hold: the name that they know it by, and where it lies."""

    name: str
    directory: Path


@dataclass
class _Server:
    """An endpoint and how it does."""

    endpoint: Endpoint
    delay: float
    """Before it is asked again, should it fail."""
    ready: bool = False
    """Whether it answers and holds the weights."""
    unsynced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is to be asked which weights it holds."""
    reading: Path | None = None
    """The weights that it is taking now."""
    under_way: int = 0
    failing_since: float | None = None
    """When it failed for the first time after it did well."""
    reason: str = ""
    """Of its last failure."""
    reported: bool = False
    """Whether its failure was logged."""
    retry_at: float = 0.0

    def fail(self, reason: str) -> None:
        """Note that it does not do what it should, and when to ask it again."""
        self.ready, self.reason = False, reason
        if self.failing_since is None:
            self.failing_since = _now()
        self.retry_at, self.delay = _now() + self.delay, min(2 * self.delay, LAST_DELAY)
        self.unsynced.set()


@dataclass(frozen=True)
class _News:
    """What the loop's thread tells the caller's of a request."""

    place: int
    tokens: int
    """How many came; less than 0 for those that are void."""
    completion: Completion | None = None


class _Batch:
    """The requests of one `generate`, and what has come of them."""

    def __init__(self, requests: Sequence[Request], sampling: Sampling, streamed: bool) -> None:
        self.requests = requests
        self.sampling = sampling
        self.streamed = streamed
        self.waiting = deque(range(len(requests)))
        self.parts = {place: Part() for place in self.waiting}
        """Of the responses that have not ended."""
        self.news: SimpleQueue[_News | None] = SimpleQueue()
        """None comes last."""
        self.called_off = False
        self.failures = [0] * len(requests)
        """How often each request broke off."""

    def rest(self) -> Iterator[tuple[int, Completion]]:
        """Once nobody works on it any more: what has ended and was not taken yet, and what was cut off."""
        while not self.news.empty():
            news = self.news.get()
            if news is not None and news.completion is not None:
                yield news.place, news.completion
        yield from ((place, part.now()) for place, part in self.parts.items())


def api_key(variable: str | None) -> str | None:
    """The API key in an environment variable. Raises InputError, which does not show it."""
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key or not key.isascii() or not key.isprintable():
        state = "holds no API key but other characters" if key else "is not set"
        raise InputError(
            f"engine.api_key_variable: the environment variable {variable} {state}; set it to the servers' API key"
        )
    return key


def _now() -> float:
    return time.monotonic()
