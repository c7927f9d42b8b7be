"""Middleware of `vllm serve` that requires the API key on every route. Only vLLM imports this module.

    VLLM_API_KEY=... vllm serve MODEL --middleware reval_core.engines.vllm_guard.Guard

vLLM 0.32 itself asks for the key only on /v1, /v2, /inference and /cohere (serve/middleware/authenticate.py): not
on the routes that change weights.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = "/health"
"""The only route that needs no key."""

_KEY = os.environ.get("VLLM_API_KEY")
if not _KEY:  # a server that starts must not be open
    raise RuntimeError("reval_core.engines.vllm_guard: set the environment variable VLLM_API_KEY, not --api-key")

_EXPECTED = f"Bearer {_KEY}".encode()


class Guard:
    """ASGI middleware that responds with 401 to requests without the key."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on if it has the key."""
        if scope["type"] not in ("http", "websocket") or scope["path"] == OPEN or _has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})


def _has_key(scope: Message) -> bool:
    return any(
        name == b"authorization" and hmac.compare_digest(value, _EXPECTED) for name, value in scope["headers"]
    )
