"""Drawing from the replay buffer, in SQL: reproducible from a seed, with every probability on record.

A weighted draw of B without replacement takes the B smallest keys E_i / w_i, with E_i exponential (Efraimidis
and Spirakis). The probability that trajectory i is among them, given the others, is 1 − exp(−w_i τ), where τ is
the (B+1)-th smallest key. (1 / (N p) with p the share of the weight would be biased.)
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from reval_core.config import Replay
from reval_core.facts import SCHEMAS
from reval_core.files import digest
from reval_core.store import Store

PRIORITY_OFFSET = 1e-3
"""Added to |Δ|, so that a trajectory whose residual is 0 can still be drawn."""

# The keys are the same under any number of threads, and unlike hash(id, seed) independent between seeds.
# Uniform in (0, 1]: 18446744073709551617 is 2^64 + 1.
_KEY = """
    -ln((hash((hash(trajectory_id) >> 1) + (hash($seed) >> 1))::DOUBLE + 1) / 18446744073709551617.0) / w
"""

_WEIGHTS = {
    "uniform": "1.0::DOUBLE",
    "prioritised": f"pow(abs(delta) + {PRIORITY_OFFSET}, $strength)",
    "fresh": "pow($strength, $round - round)",
}

_COLUMNS = """
    trajectory_id, round AS trajectory_round, shard, row, shard_digest, reward, advantage,
    reference, log_ref, value_ref
"""


def draw_round(store: Store, settings: Replay, round: int, batch: int, updates: int, seed: int) -> pa.Table:
    """The draws of all updates of a round, from the buffer as it stands: rows of the table `draws`.

    Each update gets `batch` trajectories, or all there are if there are fewer.
    """
    draws = []
    for update in range(1, updates + 1):
        if update == 1 and settings.first == "fresh":
            rows = _fresh_batch(store, round)
        else:
            rows = _draw(store, settings, round, batch, seed=_seed(seed, round, update))
        draws.append(_as_draw(rows, round, update))
    return pa.concat_tables(draws)


def effective_sample_size(weights: np.ndarray) -> float:
    """(Σw)² / Σw²: how many equally weighted trajectories are worth as much."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def importance_exponent(settings: Replay, round: int) -> float:
    """The exponent of the importance weights in round `round`, which counts from 1."""
    first, last = settings.importance_exponent
    progress = min(1.0, (round - 1) / max(1, settings.importance_rounds - 1))
    return first + (last - first) * progress


def _fresh_batch(store: Store, round: int) -> pa.Table:
    return store.query(
        f"""
        SELECT {_COLUMNS}, 'fresh' AS source, 1.0::DOUBLE AS probability, 1.0::REAL AS weight
        FROM buffer WHERE round = $round ORDER BY trajectory_id
        """,
        round=round,
    )


def _draw(store: Store, settings: Replay, round: int, batch: int, seed: int) -> pa.Table:
    parameters: dict[str, float] = {"seed": seed, "limit": batch + 1}
    if settings.sampling == "prioritised":
        parameters["strength"] = settings.priority_exponent
    elif settings.sampling == "fresh":
        parameters |= {"strength": settings.age_decay, "round": round}
    found = store.query(
        f"""
        SELECT *, {_KEY} AS key FROM (SELECT *, {_WEIGHTS[settings.sampling]} AS w FROM buffer)
        ORDER BY key, trajectory_id LIMIT $limit
        """,
        **parameters,
    )
    probability = _inclusion(found, batch)
    if settings.sampling == "uniform" and len(found) > batch:
        live = store.query("SELECT count(*) AS live FROM buffer").column("live")[0].as_py()
        probability = np.full(batch, batch / live)
    weight = np.ones(len(probability))
    if settings.sampling == "prioritised":
        weight = (probability.min() / probability) ** importance_exponent(settings, round)
    rows = found.slice(0, batch).rename_columns({"round": "trajectory_round"})
    extra = {"source": pa.array(["buffer"] * len(rows)), "probability": probability, "weight": weight}
    for name, values in extra.items():
        rows = rows.append_column(name, pa.array(values))
    return rows


def _inclusion(found: pa.Table, batch: int) -> np.ndarray:
    """The inclusion probability of each drawn row, from the first key that was not drawn."""
    if len(found) <= batch:
        return np.ones(len(found))
    threshold = found.column("key")[batch].as_py()
    weights = found.column("w").to_numpy()[:batch]
    return -np.expm1(-weights * threshold)


def _as_draw(rows: pa.Table, round: int, update: int) -> pa.Table:
    count = len(rows)
    columns = {
        **{name: rows.column(name) for name in rows.column_names},
        "round": pa.array([round] * count),
        "update": pa.array([update] * count),
        "position": pa.array(range(count)),
        "staleness": pa.array(round - rows.column("trajectory_round").to_numpy()),
    }
    schema = SCHEMAS["draws"]
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _seed(seed: int, round: int, update: int) -> int:
    return int(digest("draw", seed, round, update)[:15], 16)
