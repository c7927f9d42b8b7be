"""HTTP client of one running `vllm serve`: loads a policy's weights into it and requests responses.

Requests to /v1/completions contain token ids, and so do the responses. Weights are updated through the development
endpoints of vLLM 0.32 (VLLM_SERVER_DEV_MODE=1), where a server also stores the version of its weights.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from reval_core.errors import RunStopped

if TYPE_CHECKING:
    from reval_core.engines.engine import Sampling
    from reval_core.engines.response import Response

_CONNECT_SECONDS = 10.0

_RESET_SECONDS = 30.0
"""How long aborted requests may hold blocks of the old policy's prefix cache."""

_IDLE_CONNECTION_SECONDS = 1.0
"""How long an idle connection is reused: vLLM closes it after 5 s, and may do so while a request is on its way."""

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Generation has no timeout, but keepalive detects an unreachable machine within a minute."""


_SLEEPING = ("weights", "kv_cache")
"""The parts of a sleeping server's memory, in the order in which they wake."""


@dataclass(frozen=True)
class Weights:
    """The weights that servers should hold."""

    name: str
    """Their version, which a server stores."""
    directory: Path
    """Where the run has written them."""
    method: str
    """The method of vLLM's workers that loads them."""
    arguments: dict[str, Any]
    """Its arguments, the first of which is where the server reads the weights."""

    @property
    def source(self) -> str:
        """The path or URL that a server reads."""
        return str(next(iter(self.arguments.values())))


class Unavailable(Exception):
    """The server does not respond, or responds with an error. A retry, here or on another server, may succeed."""


class Busy(Unavailable):
    """The server is overloaded (HTTP 429)."""


class Endpoint:
    """A server, identified by its URL."""

    def __init__(self, url: str, key: str | None, patience_seconds: float, uds: Path | None = None) -> None:
        """Construct a client.

        Args:
            url: The server's base URL.
            key: The API key, sent with every request.
            patience_seconds: The timeout of all requests except generation, which has none.
            uds: The Unix domain socket of a server that listens there; `url` then only names it.
        """
        self.url = url.rstrip("/")
        self._key = key
        self._patience = patience_seconds
        self._model = ""
        self._given = False
        """Whether this process has loaded weights into it. Weights from another process are not trusted."""
        self._asleep: list[str] = []
        """The parts of its memory that it has released."""
        alive = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        alive += [
            (socket.IPPROTO_TCP, getattr(socket, name), value)
            for name, value in _KEEPALIVE.items()
            if hasattr(socket, name)
        ]
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_CONNECTION_SECONDS
        )
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            transport=(
                httpx.AsyncHTTPTransport(limits=limits, socket_options=alive)
                if uds is None
                else httpx.AsyncHTTPTransport(limits=limits, uds=str(uds))
            ),
            trust_env=False,  # do not read another key from a netrc file
        )

    async def take(self, weights: Weights) -> None:
        """Load weights, unless this process loaded them before and the server still holds them. Wakes the server.

        Raises:
            Unavailable: The server does not respond or cannot load the weights.
            RunStopped: The server was started without the development endpoints, or rejects the request.
        """
        await self._wake("weights")
        held = (await self._control("GET", "/weight_info")).get("weight_version")
        holds = self._given and held == weights.name
        if not holds or not self._model:
            self._model = (await self._json("GET", "/v1/models"))["data"][0]["id"]
        if not holds:
            await self._control(
                "POST", "/update_weight_version", {"new_version": "none"}
            )  # in case of a failure below
            call = {"method": weights.method, "kwargs": weights.arguments}
            try:
                await self._control("POST", "/collective_rpc", call)
            except Unavailable as error:
                if f"no attribute '{weights.method}'" in str(error):
                    raise RunStopped(
                        f"{self.url}: cannot receive weights over a URL; start vllm serve with "
                        "--worker-extension-cls reval_core.engines.vllm_worker.Worker"
                    ) from error
                raise Unavailable(f"it cannot load the weights in {weights.source} ({error})") from error
            await self._wake("kv_cache")
            await self._reset_cache()
            await self._control("POST", "/update_weight_version", {"new_version": weights.name})
            self._given = True

    async def responds(self) -> bool:
        """Whether the server has started."""
        try:
            await self._json("GET", "/health")
        except (Unavailable, RunStopped):
            return False
        return True

    async def sleep(self) -> None:
        """Release the server's GPU memory, weights included, until `take`. Raises Unavailable."""
        self._given = False
        await self._control("POST", "/sleep?level=2")
        self._asleep = [*_SLEEPING]

    def restarted(self) -> None:
        """Forget what was known about the server's process."""
        self._given, self._asleep = False, []

    async def _wake(self, part: str) -> None:
        """Wake weights before they are replaced and the cache afterwards, so that peak memory stays low."""
        if part in self._asleep:
            await self._control("POST", f"/wake_up?tags={part}")
            self._asleep.remove(part)

    async def choices(
        self, request: Response, sampling: Sampling, streamed: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield a response as one choice, or as several if it is streamed.

        Raises:
            Unavailable: The server fails; the request may be retried.
            RunStopped: The server rejects the request.
        """
        body = {"model": self._model, "stream": streamed} | _body(request, sampling)
        async with self._request("POST", "/v1/completions", body, seconds=None) as response:
            if not streamed:
                yield self._parsed(await response.aread())["choices"][0]
                return
            async for line in _lines(response):
                if line.startswith(b"data: {"):
                    piece = self._parsed(line.removeprefix(b"data: "))
                    if "error" in piece:
                        self._refuse(int(piece["error"].get("code") or 500), line.removeprefix(b"data: ").decode())
                    for choice in piece["choices"]:
                        yield choice

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _reset_cache(self) -> None:
        """Reset the old policy's prefix cache; vLLM refuses while an aborted request still holds blocks."""
        deadline = asyncio.get_running_loop().time() + _RESET_SECONDS
        while not (await self._control("POST", "/reset_prefix_cache")).get("success"):
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable("its prefix cache cannot be reset because other clients are using it")
            await asyncio.sleep(0.05)

    async def _control(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            return await self._json(method, path, body)
        except _NotFound as error:
            raise RunStopped(
                f"{self.url}: has no {path}; start vllm serve (0.32 or newer) with VLLM_SERVER_DEV_MODE=1 in its "
                "environment, so that its weights can be updated"
            ) from error

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        async with self._request(method, path, body, self._patience) as response:
            content = await response.aread()
            return self._parsed(content) if content else {}

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float | None
    ) -> AsyncIterator[httpx.Response]:
        timeout = httpx.Timeout(seconds, connect=_CONNECT_SECONDS)
        try:
            async with self._client.stream(method, self.url + path, json=body, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    self._refuse(response.status_code, response.text)
                yield response
        except httpx.RequestError as error:
            text = self._public(str(error)) or "connection lost"
            raise Unavailable(f"{type(error).__name__}: {text}") from None

    def _refuse(self, status: int, text: str) -> None:
        """Raise the exception for an HTTP error status."""
        message = f"HTTP {status}: {self._public(_message(text))}"
        if status == 429:
            raise Busy(message)
        if status >= 500:
            raise Unavailable(message)
        if status == 404:
            raise _NotFound(f"{self.url}: {message}; is that the address of a vllm serve?")
        remedy = ""
        if status in (401, 403):
            remedy = "; set engine.api_key_variable to the environment variable that holds its API key"
        raise RunStopped(f"{self.url} rejected the request: {message}{remedy}")

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            text = self._public(content.decode(errors="replace"))
            raise Unavailable(f"its response is not a JSON object: {text[:100]!r}")
        return found

    def _public(self, text: str) -> str:
        """A text from the server with the API key redacted."""
        return text.replace(self._key, "***") if self._key else text


class _NotFound(RunStopped):
    """The server has no such path or model."""


class Part:
    """The part of a response that has been received."""

    def __init__(self, request: Response) -> None:
        self._request = request
        self.tokens: list[int] = []
        self._logprobs: list[float] = []
        self._reason = ""

    def add(self, choice: dict[str, Any]) -> int:
        """Append a response or the next chunk of it.

        Returns:
            The number of new tokens.

        Raises:
            RunStopped: The server does not return token ids with log-probs.
        """
        tokens = choice.get("token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if tokens is None or logprobs is None or len(tokens) != len(logprobs):
            raise RunStopped("a server of engine.urls returns no token ids with log-probs; use vLLM 0.32 or newer")
        self.tokens += tokens
        self._logprobs += logprobs
        self._reason = choice.get("finish_reason") or ""
        return len(tokens)

    def whole(self) -> Response:
        """The finished response.

        Raises:
            Unavailable: The server ended the response before it was finished.
        """
        if self._reason not in ("stop", "length"):
            raise Unavailable(f"it left a response unfinished ({self._reason or 'the stream ended'})")
        return self._as(self._reason)

    def now(self) -> Response:
        """The response so far. It may be finished although its stream has not ended."""
        return self._as("partial" if self._reason not in ("stop", "length") else self._reason)

    def _as(self, reason: Any) -> Response:
        return self._request.extended(self.tokens, self._logprobs, reason)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a stream. httpx also splits at Unicode separators, which responses may contain."""
    rest = b""
    async for content in response.aiter_bytes():
        *lines, rest = (rest + content).split(b"\n")
        for line in lines:
            yield line


def _body(request: Response, sampling: Sampling) -> dict[str, Any]:
    """The body of a request. All decoding parameters are explicit, to override the defaults of the model."""
    return {
        "prompt": [*request.prompt_tokens, *request.tokens],
        "max_tokens": sampling.max_tokens - len(request.tokens),
        "temperature": sampling.temperature,
        "seed": request.seed,
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,  # only stop_token_ids end a response
        "logprobs": 0,  # only of the sampled token
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # required by servers without a tokenizer
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def _message(text: str) -> str:
    """The first line of an error message."""
    try:
        found = json.loads(text)
        error = found["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        pass
    return (text.strip().splitlines() or ["no message"])[0][:300]
