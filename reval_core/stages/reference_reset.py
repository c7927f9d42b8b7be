"""Reference reset: the current policy becomes the reference, and the live buffer is scored against it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from reval_core.session import Policy, Session
from reval_core.stages.consistency import TOKEN_COLUMNS, score_trajectories, scoring_settings
from reval_core.stages.noise import measured_noise
from reval_core.stages.stage import Outcome, publish, settings, stage
from reval_core.trajectories import RowReader


def _inputs(session: Session, round: int, policy: Policy) -> list[Any]:
    config = session.config
    replay = config.replay
    aged = [] if replay.max_age is None else [replay.max_age]
    return [policy.identity, replay.capacity, settings(config.objective), scoring_settings(config), *aged]


@stage(inputs=_inputs)
def reference_reset(session: Session, round: int, policy: Policy) -> Outcome:
    """Score every live trajectory under `policy`, which is the reference from the next round on.

    The scores against the old reference stay on record. `info["noise"]` is what the new ones are uncertain by.
    """
    live, rows = live_trajectories(session)
    scores = score_trajectories(session, round, rows, live.column("reward"), policy, policy)
    info = {"reference": policy.identity, **measured_noise(session, rows, scores, policy)}
    return Outcome([publish(session, round, "scores", scores, name="rescores")], info)


def live_trajectories(session: Session) -> tuple[pa.Table, pa.Table]:
    """The rows of the live buffer by id, and the same trajectories with their tokens."""
    live = session.store.query("SELECT * FROM buffer ORDER BY trajectory_id")
    shards = zip(live.column("round").to_pylist(), live.column("shard").to_pylist(), strict=True)
    paths = [session.folder.shard(*place) for place in shards]
    return live, RowReader(session.folder.path, TOKEN_COLUMNS).take(paths, live.column("row").to_pylist())
