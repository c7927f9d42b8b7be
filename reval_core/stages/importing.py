"""Import: responses of a file become the trajectories of round 0, as Parquet shards."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from reval_core.model.loading import context_length, tokenizer_digest
from reval_core.pipeline.run_context import RunContext
from reval_core.replay_buffer.imported import UNKNOWN, ImportedResponses
from reval_core.replay_buffer.trajectories import response_table
from reval_core.stages.generation import publish_shards
from reval_core.stages.stage import Outcome, Stage, settings

SHARD_ROWS = 256


def _inputs(context: RunContext, round: int, imported: ImportedResponses) -> list[Any]:
    config = context.config
    return [
        settings(config.rollouts),  # the file's content among them
        settings(config.problems.prompt),
        tokenizer_digest(context.tokenizer),
        context_length(config.model),
        SHARD_ROWS,
        *([imported.cut] if imported.cut else []),  # earlier versions kept the cut text
    ]


def _work(context: RunContext, round: int, imported: ImportedResponses) -> Outcome:
    def make(shard: int, first: int) -> pa.Table:
        return response_table(
            imported.responses[first : first + SHARD_ROWS],
            context.tokenizer,
            round=round,
            shard=shard,
            first_id=first,
            policy=UNKNOWN,
            engine="import",
            temperature=None,
        )

    shards = -(-len(imported.responses) // SHARD_ROWS)
    key = importing.key(context, round, imported)
    outcome = publish_shards(context, round, key, shards, make, "import")
    outcome.info |= imported.counts
    return outcome


importing = Stage("rollouts", _inputs, _work)
"""The rollouts of an import. Inputs: context, 0, imported responses."""
