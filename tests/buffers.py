"""A replay store with a buffer of given residuals, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from reval_core.replay_buffer.index import Store


def buffer_of(
    directory: Path,
    deltas: Sequence[float],
    rounds: Sequence[int] | None = None,
    rewards: Sequence[float] | None = None,
) -> Store:
    """A store whose buffer holds trajectories 0, 1, … with these residuals.

    They are of round 1 and have the reward 1, if nothing else is given.
    """
    count = len(deltas)
    store = Store(directory, directory / "replay.duckdb", capacity=max(1000, count))
    store.build([])
    store.close()
    rows = pa.table(
        {
            "trajectory_id": np.arange(count),
            "round": np.array(rounds if rounds is not None else [1] * count),
            "shard": np.zeros(count, dtype=int),
            "row": np.arange(count),
            "shard_digest": ["digest"] * count,
            "reward": np.array(rewards if rewards is not None else [1.0] * count),
            "advantage": np.zeros(count),
            "reference": ["reference"] * count,
            "log_ref": np.zeros(count),
            "value_ref": np.zeros(count),
            "delta": np.array(deltas, dtype=float),
        }
    )
    with duckdb.connect(directory / "replay.duckdb") as connection:
        connection.register("given", rows)
        connection.execute("INSERT INTO buffer SELECT * FROM given")
    return store
