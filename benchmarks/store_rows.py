"""Synthetic rows for benchmarks/store.py: a store of millions of live trajectories, a round to add, shards to read.

Random tokens are drawn by Zipf's law from 151,936, responses are 512 tokens long, a round has 8,192 trajectories in
eight shards, and residuals are exponential, so that the largest weight is several times the mean one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from reval_core.replay_buffer.index import Store
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS, Manifest, TableFile, publish_table

ROUND, SHARDS, UPDATES, DRAW = 8192, 8, 4, 1024
LENGTH, PROMPT = 512, 64


def filled_store(directory: RunDirectory, live: int) -> Store:
    """A store with `live` trajectories, all of them in the buffer, whose files were never written."""
    store = Store(directory.path, directory.database, capacity=live)
    store.build([])
    store.close()
    rows = f"""
        SELECT i, hash(i) AS h, (1 + i // {ROUND})::INTEGER AS round, (i % {ROUND})::INTEGER AS place,
            (i % {ROUND} // {ROUND // SHARDS})::INTEGER AS shard, (i % {ROUND // SHARDS})::INTEGER AS row
        FROM range({live}) AS numbers(i)
    """
    id = f"round::BIGINT * {IDS_PER_ROUND} + place"

    def uniform(number: int) -> str:
        return f"((hash(i + {number}) % 1000003) / 1000003.0)"

    with duckdb.connect(directory.database) as connection:
        connection.execute(f"""
            INSERT INTO trajectories BY NAME SELECT {id} AS trajectory_id, round, shard, row,
                'problem ' || h % 50000 AS prompt_id, i % 8 AS sample, {PROMPT} AS prompt_length,
                {LENGTH} AS response_length, 'stop' AS finish_reason, 'policy ' || round AS policy,
                'transformers' AS engine, 1.0 AS temperature, h >> 2 AS seed
            FROM ({rows})
        """)
        connection.execute(f"""
            INSERT INTO verdicts BY NAME SELECT {id} AS trajectory_id, round, 'correct' AS verdict,
                h % 1000 AS extracted, h % 2 = 0 AS correct, h % 2 AS reward, {uniform(1)} AS advantage,
                1.0 AS milliseconds
            FROM ({rows})
        """)
        connection.execute(f"""
            INSERT INTO scores BY NAME SELECT {id} AS trajectory_id, round, 'reference' AS reference,
                'policy ' || round AS policy, -100 * {uniform(2)} AS log_ref, 20 * {uniform(3)} AS value_ref,
                -100 * {uniform(4)} AS log_policy, 20 * {uniform(5)} AS value_policy, {uniform(6)} AS value_term,
                {uniform(7)} AS log_ratio, {uniform(8)} AS scaled_reward, -3 * ln({uniform(9)} + 1e-6) AS delta,
                {uniform(10)} AS entropy, 0.0 AS engine_gap
            FROM ({rows})
        """)
        connection.execute(f"""
            INSERT INTO published SELECT 'rollouts', round, place, 'trajectories', 'file ' || round || place,
                sha256(round || ' ' || place)
            FROM range(1, {live // ROUND + 2}) AS rounds(round), range({SHARDS}) AS places(place)
        """)
        connection.execute("""
            INSERT INTO buffer SELECT t.trajectory_id, t.round, t.shard, t.row, p.content, v.reward, v.advantage,
                s.reference, s.log_ref, s.value_ref, s.delta
            FROM trajectories t JOIN verdicts v USING (trajectory_id) JOIN scores s USING (trajectory_id)
            JOIN published p ON p.round = t.round AND p.place = t.shard
            ORDER BY t.trajectory_id
        """)
    return store


def stages_of_round(
    directory: RunDirectory, round: int, drawn: np.ndarray, length: int = LENGTH
) -> Iterator[Manifest]:
    """Publish a round's stages as a trainer does, each after the previous one was consumed.

    Args:
        drawn: The ids of the trajectories of its updates, equally many per update.
        length: Tokens per response.
    """
    tables = round_tables(round, drawn, length)
    size = ROUND // SHARDS
    shards = [
        (directory.shard(round, shard), tables["trajectories"].slice(shard * size, size)) for shard in range(SHARDS)
    ]
    yield _manifest(directory, "rollouts", round, [("trajectories", *shard) for shard in shards])
    for stage, names in {
        "verification": ["verdicts"],
        "consistency": ["scores"],
        "sampling": ["draws"],
        "learning": ["updates", "residuals"],
        "recording": ["rounds"],
    }.items():
        yield _manifest(
            directory, stage, round, [(name, directory.facts(round, name), tables[name]) for name in names]
        )


def round_tables(round: int, drawn: np.ndarray, length: int = LENGTH) -> dict[str, pa.Table]:
    """The rows of a round of `ROUND` trajectories, tokens and texts included."""
    rng = np.random.default_rng(round)
    ids, places = round * IDS_PER_ROUND + np.arange(ROUND), np.arange(ROUND)
    rounds = np.full(ROUND, round)
    words = np.array([f"{token:x}" for token in range(4096)])

    def tokens(count: int) -> pa.Array:
        return lists((rng.zipf(1.3, ROUND * count) % 151_936).astype(np.int32), count)

    def floats() -> np.ndarray:
        return rng.exponential(size=ROUND)

    def steps() -> pa.Array:
        return lists(-rng.exponential(0.5, ROUND * length).astype(np.float32), length)

    text = [" ".join(row) for row in words[rng.zipf(1.3, (ROUND, length // 2)) % 4096]]
    problem = [f"problem {number}: {text[number][:200]}" for number in places // 8]
    updates = np.repeat(np.arange(1, UPDATES + 1), len(drawn) // UPDATES)
    digest = "0123456789abcdef" * 4
    given: dict[str, dict[str, Any]] = {
        "trajectories": {
            "trajectory_id": ids,
            "round": rounds,
            "shard": places // (ROUND // SHARDS),
            "row": places % (ROUND // SHARDS),
            "prompt_id": [digest[:8] + str(place // 8) for place in places],
            "sample": places % 8,
            "problem": problem,
            "gold": places // 8,
            "problem_set": ["1-digit sums"] * ROUND,
            "gold_mode": ["all"] * ROUND,
            "prompt": problem,
            "response": text,
            "prompt_length": np.full(ROUND, PROMPT),
            "response_length": np.full(ROUND, length),
            "finish_reason": ["stop"] * ROUND,
            "policy": [digest] * ROUND,
            "engine": ["transformers"] * ROUND,
            "temperature": np.ones(ROUND),
            "seed": rng.integers(2**60, size=ROUND),
            "prompt_tokens": tokens(PROMPT),
            "response_tokens": tokens(length),
            "loss_mask": lists(np.ones(ROUND * length, dtype=bool), length),
            "engine_logprobs": steps(),
        },
        "verdicts": {
            "trajectory_id": ids,
            "round": rounds,
            "verdict": np.where(places % 2, "correct", "wrong"),
            "extracted": places,
            "correct": places % 2 == 1,
            "outcome": places % 2,
            "overlong_penalty": pa.nulls(ROUND),
            "reward": places % 2,
            "advantage": floats(),
            "replaced": np.zeros(ROUND, dtype=bool),
            "milliseconds": floats(),
        },
        "scores": {
            "trajectory_id": ids,
            "round": rounds,
            "reference": [digest] * ROUND,
            "policy": [digest] * ROUND,
            **{name: floats() for name in ("log_ref", "value_ref", "log_policy", "value_policy", "value_term")},
            **{name: floats() for name in ("log_ratio", "scaled_reward", "delta", "entropy", "engine_gap")},
            "step_deltas": steps(),
            "policy_logprobs": steps(),
        },
        "draws": {
            "round": np.full(len(drawn), round),
            "update": updates,
            "position": np.arange(len(drawn)) % DRAW,
            "trajectory_id": drawn,
            "source": ["buffer"] * len(drawn),
            **{name: rng.random(len(drawn)) for name in ("probability", "weight", "reward", "advantage")},
            **{name: rng.random(len(drawn)) for name in ("log_ref", "value_ref")},
            "staleness": round - drawn // IDS_PER_ROUND,
            "trajectory_round": drawn // IDS_PER_ROUND,
            "shard": drawn % IDS_PER_ROUND // (ROUND // SHARDS),
            "row": drawn % IDS_PER_ROUND % (ROUND // SHARDS),
            "shard_digest": [digest[place % 8 :] for place in drawn],
            "reference": [digest] * len(drawn),
        },
        "updates": {"round": np.full(UPDATES, round), "update": np.arange(1, UPDATES + 1)},
        "residuals": {
            "round": np.full(len(drawn), round),
            "update": updates,
            "trajectory_id": drawn,
            **{name: rng.exponential(size=len(drawn)) for name in ("delta", "value_term", "log_ratio")},
        },
        "rounds": {"round": [round]},
    }
    return {table: complete(table, columns) for table, columns in given.items()}


def complete(table: str, columns: dict[str, Any]) -> pa.Table:
    """A table with some of its columns; the others are null."""
    count = len(next(iter(columns.values())))
    given = {
        name: pa.array(value).cast(kind) if name in columns else pa.nulls(count, kind)
        for name, kind in zip(SCHEMAS[table].names, SCHEMAS[table].types, strict=True)
        for value in [columns.get(name)]
    }
    return pa.table(given, schema=SCHEMAS[table])


def lists(values: np.ndarray, length: int) -> pa.Array:
    """Lists of `length` values each."""
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, length, dtype=np.int32), pa.array(values))


def _manifest(directory: RunDirectory, stage: str, round: int, files: list[tuple[str, str, pa.Table]]) -> Manifest:
    published: list[TableFile] = [publish_table(directory.path, path, table, rows) for table, path, rows in files]
    return Manifest(stage, round, stage, tuple(published))
