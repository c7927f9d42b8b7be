"""The alternatives in benchmarks/store.py: a sum-tree in memory, and SQLite sorting by a random key."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np

EXPONENT, OFFSET = 0.6, 1e-3

_FILL = """
    WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < :live)
    INSERT INTO buffer SELECT i, i / 8192, i % 8192 / 1024, i % 1024, :digest, i % 2, 0.5, 'reference',
        -1.0 * (i % 977), 0.1 * (i % 199), pow(-3 * ln((abs(random()) % 1000003 + 1) / 1000004.0) + 0.001, 0.6)
    FROM numbers
"""

_DRAW = """
    SELECT * FROM buffer
    ORDER BY -ln((random() + 9223372036854775809.0) / 18446744073709551617.0) / weight LIMIT :count
"""


class SumTree:
    """Priorities in a binary sum-tree, and the columns of a draw in arrays: nothing is on disk.

    Draws are with replacement, as in prioritised experience replay.
    """

    def __init__(self, live: int) -> None:
        rng = np.random.default_rng(0)
        self.leaves = 1 << (live - 1).bit_length()
        self.live = live
        self.tree = np.zeros(2 * self.leaves)
        self.tree[self.leaves : self.leaves + live] = (rng.exponential(3, live) + OFFSET) ** EXPONENT
        level = self.leaves
        while level > 1:
            self.tree[level // 2 : level] = self.tree[level : 2 * level].reshape(-1, 2).sum(axis=1)
            level //= 2
        self.columns = [rng.random(live, dtype=np.float32) for _ in range(9)]

    def draw(self, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The indices drawn, and their columns."""
        rest = (np.arange(count) + rng.random(count)) / count * self.tree[1]
        nodes = np.ones(count, dtype=np.int64)
        while nodes[0] < self.leaves:
            nodes *= 2
            right = rest >= self.tree[nodes]
            rest -= np.where(right, self.tree[nodes], 0)
            nodes += right
        places = np.minimum(nodes - self.leaves, self.live - 1)
        return [places, *(column[places] for column in self.columns)]

    def update(self, places: np.ndarray, deltas: np.ndarray) -> None:
        """Set the priorities of the trajectories at these indices."""
        nodes = places + self.leaves
        self.tree[nodes] = (np.abs(deltas) + OFFSET) ** EXPONENT
        while len(nodes) and nodes[0] > 1:
            nodes = np.unique(nodes // 2)
            self.tree[nodes] = self.tree[2 * nodes] + self.tree[2 * nodes + 1]


class SqliteBuffer:
    """A table keyed by trajectory, drawn from by sorting all of it."""

    def __init__(self, path: Path, live: int) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.execute("PRAGMA cache_size = -2000000")
        self.connection.execute("""
            CREATE TABLE buffer (trajectory_id INTEGER PRIMARY KEY, round, shard, row, shard_digest, reward,
                advantage, reference, log_ref, value_ref, weight)
        """)
        self.connection.execute(_FILL, {"live": live, "digest": "0123456789abcdef" * 4})
        self.live = live

    def draw(self, count: int) -> list[tuple]:
        """The rows drawn."""
        return self.connection.execute(_DRAW, {"count": count}).fetchall()

    def update(self, ids: np.ndarray, deltas: np.ndarray) -> None:
        """Set the priorities of these trajectories."""
        weights = (np.abs(deltas) + OFFSET) ** EXPONENT
        self.connection.execute("BEGIN")
        self.connection.executemany(
            "UPDATE buffer SET weight = ? WHERE trajectory_id = ?", zip(weights.tolist(), ids.tolist(), strict=True)
        )
        self.connection.execute("COMMIT")

    def append(self, count: int) -> None:
        """Append `count` trajectories and evict the oldest."""
        [(newest,)] = self.connection.execute("SELECT max(trajectory_id) FROM buffer").fetchall()
        rows = [
            (newest + 1 + place, 1, 1, place, "0123456789abcdef" * 4, 1, 0.5, "reference", -1.0, 0.1, 1.0)
            for place in range(count)
        ]
        self.connection.execute("BEGIN")
        self.connection.executemany("INSERT INTO buffer VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self.connection.execute("DELETE FROM buffer WHERE trajectory_id <= ?", (newest + count - self.live,))
        self.connection.execute("COMMIT")
