"""Showing things on Prefect's page, which training neither waits for nor stops for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import httpx
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

log = logging.getLogger("reval")


def show(create: Callable[..., Any], **content: Any) -> None:
    """Call one of Prefect's `create_…_artifact`. If the server does not answer, it is said and left."""
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            create(**content)
    except httpx.TransportError as error:
        log.warning("Prefect's server does not answer (%s): %s is not on its page", error, content["key"])
