"""Recording as a task that also shows the last rounds as a table in the Prefect UI."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prefect.artifacts import create_table_artifact

from reval.tasks.artifacts import show
from reval.tasks.stage_task import as_task
from reval_core import stages
from reval_core.pipeline.run_context import RunContext
from reval_core.storage.tables import Manifest

_record = as_task(stages.recording, retries=1)

# Prefect keeps every version of an artifact, so the table is not sent every round.
_ARTIFACT_EVERY = 10

_SHOWN = """
    round, accuracy, held_out_accuracy, reward, delta_abs, drawn_delta_abs, stored_delta_abs, residual_left, kl,
    entropy, response_length, grad_norm
"""


def recording(context: RunContext, round: int, manifests: Sequence[Manifest]) -> Manifest:
    """Record the round, and show the last rounds every `_ARTIFACT_EVERY` rounds."""
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
    name = re.sub(r"[^a-z0-9]", "-", context.directory.name.lower())  # the characters that Prefect allows in a key
    description = f"The last rounds of {context.directory.name}"
    show(create_table_artifact, table=rows.to_pylist(), key=f"reval-{name}", description=description)
