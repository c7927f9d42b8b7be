"""A trainer as readers see it: publishes rounds and, after each, the database of views.

usage: python -m tests.integration.process_tables RUN_DIR ROUNDS
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from reval_core.replay_buffer.index import Store
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS, Manifest, publish_table

ROWS = 50
"""The verdicts of a round."""


def main(path: str, rounds: str) -> None:
    directory = RunDirectory(Path(path))
    directory.path.mkdir()
    store = Store(directory.path, directory.database, capacity=100)
    store.build(directory.manifests())
    for round in range(1, int(rounds) + 1):
        verdicts = [{"trajectory_id": round * IDS_PER_ROUND + row, "round": round} for row in range(ROWS)]
        for stage, table, rows in (
            ("verification", "verdicts", verdicts),
            ("recording", "rounds", [{"round": round}]),
        ):
            given = pa.Table.from_pylist(rows, SCHEMAS[table])
            file = publish_table(directory.path, directory.facts(round, table), table, given)
            manifest = Manifest(stage, round, stage, (file,))
            directory.publish(manifest)
            store.ingest(manifest)
        store.publish_views(directory.tables)
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
