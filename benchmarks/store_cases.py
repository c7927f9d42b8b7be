"""The cases of benchmarks/store.py, each in its own process: `python benchmarks/store_cases.py CASE [SIZE]`.

Each works in a temporary directory. Times are in milliseconds. Uses the shortest, which other work on a shared
machine disturbed least; with concurrent readers and a trainer, the longest.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.store_peers import SqliteBuffer, SumTree
from benchmarks.store_rows import DRAW, ROUND, UPDATES, complete, filled_store, round_tables, stages_of_round
from reval_core.config import Replay
from reval_core.learning.draws import DrawReader
from reval_core.replay_buffer.index import Store
from reval_core.replay_buffer.sampling import draw_round
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import publish_table

REPEATS = 7
TRAINER_ROUNDS = 20
SHORT = 8
"""Tokens per response where they are not read."""


class Clock:
    """Milliseconds by name."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, work: Callable[[], Any], share: int = 1) -> Any:
        """Time `work`, which is `share` times the named operation."""
        started = time.perf_counter()
        result = work()
        self.times[name].append((time.perf_counter() - started) * 1000 / share)
        return result

    def least(self) -> dict[str, float]:
        return {name: min(times) for name, times in self.times.items()}


def reval(directory: Path, live: int) -> dict[str, float]:
    """A round's prioritised draws (`draw`: one of the four; `single`: a round of one), and ingesting a round.

    `append` is everything before the draws, eviction included; `update` the residuals of 4,096.
    """
    run = RunDirectory(directory)
    store = filled_store(run, live)
    replay = Replay(capacity=live, sampling="prioritised", first="buffer")
    first = live // ROUND + 2
    draw_round(store, replay, first, DRAW, 1, seed=0)
    clock = Clock()
    for round in range(first, first + REPEATS):
        drawn = clock.time("draw", lambda: draw_round(store, replay, round, DRAW, UPDATES, seed=1), UPDATES)  # noqa: B023
        clock.time("single", lambda: draw_round(store, replay, round, DRAW, 1, seed=2))  # noqa: B023
        taken: dict[str, float] = defaultdict(float)
        for manifest in stages_of_round(run, round, drawn.column("trajectory_id").to_numpy(), SHORT):
            started = time.perf_counter()
            store.ingest(manifest)
            before = manifest.stage in ("rollouts", "verification", "consistency")
            taken["append" if before else manifest.stage] += (time.perf_counter() - started) * 1000
        clock.times["append"].append(taken["append"])
        clock.times["update"].append(taken["learning"])
        for path in ("rollouts", "facts"):
            shutil.rmtree(directory / path)
    [held] = store.query("SELECT count(*) AS live FROM buffer").column("live").to_pylist()
    assert held == live, "the buffer does not stay as large as it may be"
    return clock.least()


def sum_tree(directory: Path, live: int) -> dict[str, float]:
    """The same in memory; `append` writes priorities and columns of as many entries."""
    tree, rng, clock = SumTree(live), np.random.default_rng(0), Clock()
    for _ in range(REPEATS):
        places = clock.time("draw", lambda: tree.draw(DRAW, rng))[0]
        places = np.unique(np.concatenate([places, *(tree.draw(DRAW, rng)[0] for _ in range(UPDATES - 1))]))
        clock.time("update", lambda: tree.update(places, rng.exponential(3, len(places))))  # noqa: B023
        fresh = (np.arange(ROUND) + rng.integers(live)) % live

        def append() -> None:
            for column in tree.columns:
                column[fresh] = 1.0  # noqa: B023
            tree.update(fresh, rng.exponential(3, ROUND))  # noqa: B023

        clock.time("append", append)
    return clock.least()


def sqlite(directory: Path, live: int) -> dict[str, float]:
    """The same in SQLite."""
    buffer, rng, clock = SqliteBuffer(directory / "buffer.sqlite", live), np.random.default_rng(0), Clock()
    for _ in range(2):
        rows = clock.time("draw", lambda: buffer.draw(DRAW))
        ids = np.concatenate([[row[0] for row in rows], rng.integers(ROUND, live, DRAW * (UPDATES - 1))])
        clock.time("update", lambda: buffer.update(ids, rng.exponential(3, len(ids))))  # noqa: B023
        clock.time("append", lambda: buffer.append(ROUND))
    return clock.least()


def fetch(directory: Path, live: int) -> dict[str, float]:
    """The tokens and scores of a draw of 1,024, from rounds of 1,024 in shards of 128.

    `cold` is the first draw of a process, `warm` one after every file was read.
    """
    run = RunDirectory(directory)
    rounds, per, size = -(-live // 1024), 1024, 128
    tables = round_tables(1, np.arange(4))
    sources = [directory / "source" / f"{number}.parquet" for number in range(ROUND // size)]
    for number, source in enumerate(sources):
        rows = tables["trajectories"].slice(number * size, size)
        publish_table(source.parent, source.name, "trajectories", rows)
    publish_table(directory / "source", "scores.parquet", "scores", tables["scores"].slice(0, per))
    for round in range(1, rounds + 1):
        for shard in range(per // size):
            _copy(sources[(round + shard) % len(sources)], directory / run.shard(round, shard))
        _copy(directory / "source/scores.parquet", directory / run.facts(round, "scores"))
    rng, reader, clock = np.random.default_rng(0), DrawReader(run), Clock()
    for number in range(REPEATS + 5):
        chosen = rng.choice(live, DRAW, replace=False)
        columns = {
            "update": np.ones(DRAW),
            "trajectory_id": (1 + chosen // per) * IDS_PER_ROUND + chosen % per,
            "trajectory_round": 1 + chosen // per,
            "shard": chosen % per // size,
            "row": chosen % size,
            **{name: np.ones(DRAW) for name in ("weight", "reward", "advantage", "log_ref", "value_ref")},
        }
        later = 1000 + number
        publish_table(directory, run.facts(later, "draws"), "draws", complete("draws", columns))
        name = "cold" if number == 0 else "filling" if number < 5 else "warm"
        clock.time(name, lambda: reader.read(later))  # noqa: B023
    return {name: clock.least()[name] for name in ("cold", "warm")}


def disk(directory: Path) -> dict[str, float]:
    """Bytes of a million trajectories of 512 tokens, with four updates of a batch each.

    `all` is whole files; `scalars` the columns of them that are neither texts nor lists.
    """
    texts = {"problem", "prompt", "response"}
    total, scalars = 0, 0
    drawn = np.random.default_rng(0).integers(ROUND, size=ROUND * UPDATES) + IDS_PER_ROUND
    for _ in (manifests := list(stages_of_round(RunDirectory(directory), 1, drawn))):
        pass
    for path in (directory / file.path for manifest in manifests for file in manifest.files):
        total += path.stat().st_size
        metadata = pq.read_metadata(path)
        for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
            for column in (group.column(number) for number in range(metadata.num_columns)):
                if "." not in column.path_in_schema and column.path_in_schema not in texts:
                    scalars += column.total_compressed_size
    return {"all": total / ROUND * 1e6, "scalars": scalars / ROUND * 1e6}


def readers(directory: Path) -> dict[str, float]:
    """The longest wait of a reader of `tables.duckdb` for its rows, and of a trainer for one transaction.

    `trainer_alone` is the same trainer without a reader.
    """
    alone = _trainer(directory / "alone").communicate()[0]
    run = RunDirectory(directory / "watched")
    trainer, clock = _trainer(run.path), Clock()
    while trainer.poll() is None:
        if run.tables.exists():
            clock.time("reader", lambda: _read(run.tables))
    watched = trainer.communicate()[0]
    return {
        "reader": max(clock.times["reader"]),
        "reader_median": float(np.median(clock.times["reader"])),
        "reader_99th": float(np.quantile(clock.times["reader"], 0.99)),
        "readings": len(clock.times["reader"]),
        "trainer": float(watched.split()[-1]),
        "trainer_alone": float(alone.split()[-1]),
    }


def trainer(directory: Path) -> float:
    """Ingest rounds and publish their views; the longest transaction or publication, in milliseconds."""
    run, clock = RunDirectory(directory), Clock()
    directory.mkdir(parents=True)
    store = Store(directory, run.database, capacity=2 * ROUND)
    store.build([])
    for round in range(1, TRAINER_ROUNDS + 1):
        drawn = round * IDS_PER_ROUND + np.arange(DRAW * UPDATES)
        for manifest in stages_of_round(run, round, drawn, SHORT):
            clock.time("ingest", lambda: store.ingest(manifest))  # noqa: B023
        clock.time("publish", lambda: store.publish_views(run.tables))
    store.close()
    return max(max(times) for times in clock.times.values())


def _trainer(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__)), "trainer", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _read(path: Path) -> None:
    with duckdb.connect(path, read_only=True) as connection:
        connection.execute("SELECT round, count(*), avg(reward) FROM verdicts GROUP BY round").fetchall()
        connection.execute("SELECT count(*) FROM rounds").fetchall()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


CASES: dict[str, Callable[..., dict[str, float]]] = {
    "reval": reval,
    "sum_tree": sum_tree,
    "sqlite": sqlite,
    "fetch": fetch,
    "disk": disk,
    "readers": readers,
}

if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    if name == "trainer":
        print(trainer(Path(sizes[0])))
    else:
        with tempfile.TemporaryDirectory() as path:
            print(json.dumps(CASES[name](Path(path), *map(int, sizes))))
