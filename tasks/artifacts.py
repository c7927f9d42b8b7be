"""Artifacts in the Prefect UI. Training neither waits for them nor fails because of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import httpx
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from reval_core.pipeline.run_context import RunContext

log = logging.getLogger("reval")

_EVERY = 10
"""Prefect keeps every version of an artifact, so the table is not sent every round."""

_SHOWN = """
    round, accuracy, held_out_accuracy, reward, delta_abs, drawn_delta_abs, stored_delta_abs, residual_left, kl,
    entropy, response_length, grad_norm
"""


def show_text(key: str, markdown: str, description: str) -> None:
    """Show a text in the Prefect UI."""
    _show(key, lambda: create_markdown_artifact(markdown, key=key, description=description))


def show_rounds(context: RunContext, round: int) -> None:
    """Show the last rounds as a table, at fixed intervals, unless this round was recorded by an earlier attempt."""
    due = round and (round % _EVERY == 0 or round == context.config.rounds)
    if not due or "recording" in context.kept:
        return
    rows = context.store.query(
        f"SELECT {_SHOWN} FROM rounds WHERE round <= $round ORDER BY round DESC LIMIT 50", round=round
    ).to_pylist()
    name = re.sub(r"[^a-z0-9]", "-", context.directory.name.lower())  # the characters that Prefect allows in a key
    key, description = f"reval-{name}", f"The last rounds of {context.directory.name}"
    _show(key, lambda: create_table_artifact(rows, key=key, description=description))


def _show(key: str, create: Callable[[], object]) -> None:
    """Create an artifact. If the server does not respond, log a warning and continue."""
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            create()
    except httpx.TransportError as error:
        log.warning("the Prefect server does not respond (%s): %s is not in its UI", error, key)
