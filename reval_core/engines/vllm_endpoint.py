"""One running `vllm serve`, over HTTP: making it take a policy's weights, and asking it for responses.

Tokens go into /v1/completions and tokens come out. Weights are handed over through the development endpoints of
vLLM 0.32 (VLLM_SERVER_DEV_MODE=1), where a server also keeps the name of the weights that it holds.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from reval_core.engines.engine import Completion
from reval_core.errors import RunStopped

if TYPE_CHECKING:
    from reval_core.engines.engine import Request, Sampling

_CONNECT_SECONDS = 10.0

_RESET_SECONDS = 30.0
"""How long responses that were called off may hold on to the old policy's cache."""

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A response may take any time, but a machine that is gone is noticed within a minute."""


class Unavailable(Exception):
    """The server does not answer, or not with what was asked for. It, or another one, may do so later."""


class Busy(Unavailable):
    """The server wants fewer requests."""


class Endpoint:
    """A server by its url."""

    def __init__(self, url: str, key: str | None, patience_seconds: float) -> None:
        """`key` goes with every request; patience is for all that is not generation, which may take any time."""
        self.url = url.rstrip("/")
        self._key = key
        self._patience = patience_seconds
        self._model = ""
        self._given = False
        """Whether this process has given it weights. Those of another may be what that one stopped for."""
        alive = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        alive += [
            (socket.IPPROTO_TCP, getattr(socket, name), value)
            for name, value in _KEEPALIVE.items()
            if hasattr(socket, name)
        ]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            transport=httpx.AsyncHTTPTransport(limits=limits, socket_options=alive),
            trust_env=False,  # a netrc file is not asked for another key
        )

    async def take(self, name: str, directory: Path) -> None:
        """Make the server hold the weights in `folder`, unless it was given them here already and has kept them.

        Raises Unavailable, or RunStopped if the server was not started for this.
        """
        held = (await self._control("GET", "/weight_info")).get("weight_version")
        holds = self._given and held == name
        if not holds or not self._model:
            self._model = (await self._json("GET", "/v1/models"))["data"][0]["id"]
        if not holds:
            await self._control("POST", "/update_weight_version", {"new_version": "none"})  # should the rest fail
            call = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
            try:
                await self._control("POST", "/collective_rpc", call)
            except Unavailable as error:
                raise Unavailable(f"it cannot load the weights in {directory} ({error})") from error
            await self._reset_cache()
            await self._control("POST", "/update_weight_version", {"new_version": name})
            self._given = True

    async def choices(
        self, request: Request, sampling: Sampling, streamed: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """A response: whole, or streamed piece by piece. Raises Unavailable, or RunStopped if it is refused."""
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
        """Drop the old policy's keys and values; vLLM does not while a response that was called off holds some."""
        deadline = asyncio.get_running_loop().time() + _RESET_SECONDS
        while not (await self._control("POST", "/reset_prefix_cache")).get("success"):
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable("its prefix cache cannot be reset, since others have it generate")
            await asyncio.sleep(0.05)

    async def _control(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            return await self._json(method, path, body)
        except _NotFound as error:
            raise RunStopped(
                f"{self.url}: has no {path}; start vllm serve (0.32 or newer) with VLLM_SERVER_DEV_MODE=1 in its "
                "environment, so that it can be given new weights"
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
            text = self._public(str(error)) or "the connection broke off"
            raise Unavailable(f"{type(error).__name__}: {text}") from None

    def _refuse(self, status: int, text: str) -> None:
        """Raise what this status of a response, with this text, means."""
        message = f"HTTP {status}: {self._public(_message(text))}"
        if status == 429:
            raise Busy(message)
        if status >= 500:
            raise Unavailable(message)
        if status == 404:
            raise _NotFound(f"{self.url}: {message}; is that the address of a vllm serve?")
        remedy = ""
        if status in (401, 403):
            remedy = "; name the environment variable that holds its API key in engine.api_key_variable"
        raise RunStopped(f"{self.url} refuses the request: {message}{remedy}")

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            text = self._public(content.decode(errors="replace"))
            raise Unavailable(f"its answer is not a JSON object: {text[:100]!r}")
        return found

    def _public(self, text: str) -> str:
        """A text of the server's, without the key, should it repeat that."""
        return text.replace(self._key, "***") if self._key else text


class _NotFound(RunStopped):
    """The server knows no such path or model."""


class Part:
    """What has come of one response."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._logprobs: list[float] = []
        self._reason = ""

    def add(self, choice: dict[str, Any]) -> int:
        """Add a whole response or the next piece of it, and say how many tokens that is.

        Raises RunStopped if the server does not say which tokens these are, and how likely they were.
        """
        tokens = choice.get("token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if tokens is None or logprobs is None or len(tokens) != len(logprobs):
            raise RunStopped(
                "a server of engine.urls gives no tokens with log-probabilities; use vLLM 0.32 or newer"
            )
        self.tokens += tokens
        self._logprobs += logprobs
        self._reason = choice.get("finish_reason") or ""
        return len(tokens)

    def whole(self) -> Completion:
        """The response that has ended. Raises Unavailable if the server left it unfinished."""
        if self._reason not in ("stop", "length"):
            raise Unavailable(f"it left a response unfinished ({self._reason or 'the stream ended'})")
        return self._as(self._reason)

    def now(self) -> Completion:
        """The response as it is, which may have ended although its stream has not."""
        return self._as("partial" if self._reason not in ("stop", "length") else self._reason)

    def _as(self, reason: Any) -> Completion:
        return Completion(self.tokens, self._logprobs, reason)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """A stream's lines. httpx's own also end at separators that may stand in a response's text."""
    rest = b""
    async for content in response.aiter_bytes():
        *lines, rest = (rest + content).split(b"\n")
        for line in lines:
            yield line


def _body(request: Request, sampling: Sampling) -> dict[str, Any]:
    """Everything that shapes the distribution is named, or the defaults of the server's model would come in."""
    return {
        "prompt": [*request.prompt_tokens, *request.written],
        "max_tokens": sampling.max_tokens - len(request.written),
        "temperature": sampling.temperature,
        "seed": request.seed,
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,  # stop_token_ids are all that ends a response
        "logprobs": 0,  # of the sampled token alone
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # a server without a tokenizer has no others
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def _message(text: str) -> str:
    """The first line of an error's message."""
    try:
        found = json.loads(text)
        error = found["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        pass
    return (text.strip().splitlines() or ["no message"])[0][:300]
