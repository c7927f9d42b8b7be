"""Recording as a task: the last rounds are also shown as a table on the Prefect page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prefect.artifacts import create_table_artifact

from reval_core import stages
from reval_core.pipeline.run_context import RunContext
from reval_core.storage.tables import Manifest
from tasks.artifacts import show
from tasks.stage_task import as_task

_record = as_task(stages.recording, retries=1)

# Prefect keeps every version of an artifact, so a long run's table is not sent each round.
_ARTIFACT_EVERY = 10

_SHOWN = """
    round, accuracy, held_out_accuracy, reward, delta_abs, drawn_delta_abs, stored_delta_abs, residual_left, kl,
    entropy, response_length, grad_norm
"""


def recording(context: RunContext, round: int, manifests: Sequence[Manifest]) -> Manifest:
    """Record the round, and now and then show the last ones."""
    fresh = stages.recording.published(context, round, manifests) is None
    manifest = _record(context, round, manifests)
    due = round % _ARTIFACT_EVERY == 0 or round == context.config.rounds
    if fresh and due:
        _show_table(context, round)
    return manifest


def _show_table(context: RunContext, round: int) -> None:
    rows = context.store.query(
        f"SELECT {_SHOWN} FROM rounds WHERE round <= $round ORDER BY round DESC LIMIT 50", round=round
    )
    name = re.sub(r"[^a-z0-9]", "-", context.directory.name.lower())  # Prefect takes no other letters in a key
    description = f"The last rounds of {context.directory.name}"
    show(create_table_artifact, table=rows.to_pylist(), key=f"reval-{name}", description=description)
