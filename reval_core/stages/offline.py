"""Offline data: copies trajectories and verdicts of another run into this run, as those of round 0.

The records are copied, not regenerated or judged again, and the other run is not needed afterwards.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from reval_core.pipeline.run_context import RunContext
from reval_core.replay_buffer.offline import StoredRun, imported_shard, imported_verdicts
from reval_core.stages.generation import publish_shards
from reval_core.stages.stage import Outcome, Stage, publish
from reval_core.storage.tables import Manifest


def _shards_inputs(context: RunContext, round: int, stored: StoredRun) -> list[Any]:
    return [[asdict(file) for file in stored.shards]]


def _import_shards(context: RunContext, round: int, stored: StoredRun) -> Outcome:
    key = stored_rollouts.key(context, round, stored)
    return publish_shards(context, round, key, len(stored.shards), partial(imported_shard, stored), "stored")


def _verdicts_inputs(context: RunContext, round: int, stored: StoredRun, rollouts: Manifest) -> list[Any]:
    return [rollouts.digest, [asdict(one.verdicts) for one in stored.rounds]]


def _import_verdicts(context: RunContext, round: int, stored: StoredRun, rollouts: Manifest) -> Outcome:
    return Outcome([publish(context, round, "verdicts", imported_verdicts(stored))])


stored_rollouts = Stage("rollouts", _shards_inputs, _import_shards)
"""The rollouts of an offline run. Inputs: context, 0, stored run."""

stored_verdicts = Stage("verification", _verdicts_inputs, _import_verdicts)
"""The verdicts of an offline run. Inputs: context, 0, stored run, manifest of rollouts."""
