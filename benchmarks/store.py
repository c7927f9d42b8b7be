"""The database's times at one and ten million live trajectories, with a sum-tree and SQLite in the same run.

    python benchmarks/store.py        writes benchmarks/baselines/store.json and reports missed limits

Takes about six minutes, 4 GB of memory and 4 GB of disk. The metrics, in milliseconds by default:

    draw_1m_ms, draw_10m_ms     one prioritised draw of 1,024 without replacement, of a round's four
    update_ms, append_ms        at 10M: 4,096 residuals ingested; a round of 8,192 ingested and as many evicted
    fetch_5k_ms, fetch_100k_ms  tokens and scores of 1,024 of this many live trajectories, warm files
    reader_worst_ms             a second process's longest wait for rows from tables.duckdb during ingestion
    trainer_worst_ms            the longest transaction meanwhile
    bytes_per_million_*         on disk: scalar columns, and everything with 512 tokens per response
    sum_tree, sqlite            the same names without _ms, at both sizes

A sum-tree's `update` and `append` are changes in memory; the database's are durable transactions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.record import Limits, record, run

SIZES = {"1m": 1_000_000, "10m": 10_000_000}

LIMITS: Limits = {
    "draw_1m_ms": ("at most", 20),
    "draw_10m_ms": ("at most", 100),
    "fetch_5k_ms": ("at most", 100),
    "fetch_100k_ms": ("at most", 500),
    "reader_worst_ms": ("at most", 200),
}
"""The limits on two dedicated cores; a run of this file reports those that were missed."""


def case(name: str, *sizes: int) -> dict[str, Any]:
    print(name, *sizes, flush=True)
    return run(sys.executable, "benchmarks/store_cases.py", name, *map(str, sizes))


def measure_all() -> dict[str, Any]:
    """Every metric, with additional observations."""
    by_size = {
        kind: {size: case(kind, live) for size, live in SIZES.items()} for kind in ("reval", "sum_tree", "sqlite")
    }
    fetched = {"5k": case("fetch", 5120), "100k": case("fetch", 100_000)}
    disk, readers = case("disk"), case("readers")
    ours = by_size.pop("reval")
    return {
        "draw_1m_ms": ours["1m"]["draw"],
        "draw_10m_ms": ours["10m"]["draw"],
        "update_ms": ours["10m"]["update"],
        "append_ms": ours["10m"]["append"],
        "fetch_5k_ms": fetched["5k"]["warm"],
        "fetch_100k_ms": fetched["100k"]["warm"],
        "reader_worst_ms": readers["reader"],
        "trainer_worst_ms": readers["trainer"],
        "bytes_per_million_scalars": disk["scalars"],
        "bytes_per_million_with_tokens": disk["all"],
        **by_size,
        "details": {"reval": ours, "fetch": fetched, "readers": readers},
        "limits": LIMITS,
    }


def main() -> None:
    record("store", measure_all(), LIMITS, ("duckdb", "pyarrow", "numpy"))


if __name__ == "__main__":
    main()
