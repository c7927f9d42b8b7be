"""A trainer as readers see it: publishes rounds and, after each, the database of views.

usage: python -m tests.integration.process_tables RUN_DIR ROUNDS
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from reval_core.facts import SCHEMAS, Manifest, publish_table
from reval_core.run_folder import RunFolder
from reval_core.store import Store
from reval_core.trajectories import IDS_PER_ROUND

ROWS = 50
"""The verdicts of a round."""


def main(path: str, rounds: str) -> None:
    folder = RunFolder(Path(path))
    folder.path.mkdir()
    store = Store(folder.path, folder.database, capacity=100)
    store.build(folder.manifests())
    for round in range(1, int(rounds) + 1):
        verdicts = [{"trajectory_id": round * IDS_PER_ROUND + row, "round": round} for row in range(ROWS)]
        for stage, table, rows in (
            ("verification", "verdicts", verdicts),
            ("recording", "rounds", [{"round": round}]),
        ):
            given = pa.Table.from_pylist(rows, SCHEMAS[table])
            file = publish_table(folder.path, folder.facts(round, table), table, given)
            manifest = Manifest(stage, round, stage, (file,))
            folder.publish(manifest)
            store.ingest(manifest)
        store.publish_views(folder.tables)
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
