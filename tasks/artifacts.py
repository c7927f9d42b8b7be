"""Artifacts in the Prefect UI. Training neither waits for them nor fails because of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import httpx
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

log = logging.getLogger("reval")


def show(create: Callable[..., Any], **content: Any) -> None:
    """Call one of Prefect's `create_…_artifact`. If the server does not respond, log a warning and continue."""
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            create(**content)
    except httpx.TransportError as error:
        log.warning("the Prefect server does not respond (%s): %s is not in its UI", error, content["key"])
