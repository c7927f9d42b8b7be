"""Reference reset: the current policy, or an average, becomes the reference; the live buffer is rescored."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from reval_core.learning.checkpoints import checkpoint_state
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.replay_buffer.trajectories import RowReader
from reval_core.stages.consistency import TOKEN_COLUMNS, score_trajectories, scoring_settings
from reval_core.stages.noise import measured_noise
from reval_core.stages.stage import Outcome, publish, settings, stage


def _inputs(context: RunContext, round: int, policy: Policy, reference: Policy) -> list[Any]:
    config = context.config
    capacity, max_age = config.replay.capacity, config.replay.max_age
    return [
        policy.identity,
        capacity,
        settings(context.objective),
        scoring_settings(config),
        *([reference.identity] if reference.averaged else []),
        *([] if max_age is None else [{"max_age": max_age}]),
    ]


@stage(inputs=_inputs)
def reference_reset(context: RunContext, round: int, policy: Policy, reference: Policy) -> Outcome:
    """Score every live trajectory under the new `reference`, used from the next round on, and under `policy`.

    The scores under the old reference are kept. `info["noise"]` is the measured uncertainty of the new scores.
    """
    live, rows = live_trajectories(context)
    scores = score_trajectories(context, round, rows, live.column("reward"), policy, reference)
    info = {"reference": reference.identity, **measured_noise(context, rows, scores, policy)}
    if reference.averaged:
        info["content"] = checkpoint_state(context.directory.average(round))["content"]
    return Outcome([publish(context, round, "scores", scores, name="rescores")], info)


def live_trajectories(context: RunContext) -> tuple[pa.Table, pa.Table]:
    """The rows of the live buffer, ordered by id, and the tokens of the same trajectories."""
    live = context.store.query("SELECT * FROM buffer ORDER BY trajectory_id")
    shards = zip(live.column("round").to_pylist(), live.column("shard").to_pylist(), strict=True)
    paths = [context.directory.shard(*place) for place in shards]
    return live, RowReader(context.directory.path, TOKEN_COLUMNS).take(paths, live.column("row").to_pylist())
