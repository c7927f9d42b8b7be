"""Import: responses of a file become the trajectories of round 0, as Parquet shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from reval_core.config import ImportedRollouts
from reval_core.model.loading import context_length, tokenizer_digest
from reval_core.pipeline.run_context import RunContext
from reval_core.replay_buffer.imported import ImportedResponses, import_table, sample_numbers
from reval_core.stages.shards import publish_shards
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
    source = context.config.rollouts
    assert isinstance(source, ImportedRollouts), "only an import runs this stage"
    samples = sample_numbers(imported.rows)

    def make(shard: int, first: int) -> pa.Table:
        place = slice(first, first + SHARD_ROWS)
        return import_table(
            imported.rows[place],
            samples[place],
            shard=shard,
            first=first,
            problem_set=Path(source.file).stem,
            gold_mode=source.gold_mode,
        )

    shards = -(-len(imported.rows) // SHARD_ROWS)
    outcome = publish_shards(context, round, importing.key(context, round, imported), shards, make)
    outcome.info |= {"engine": "import", **imported.counts}
    return outcome


importing = Stage("rollouts", _inputs, _work)
"""The rollouts of an import. Inputs: context, 0, imported responses."""
