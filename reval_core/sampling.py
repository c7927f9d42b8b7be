"""Drawing from the replay buffer, in SQL: reproducible from a seed, with every probability on record.

A weighted draw of B without replacement takes the B smallest keys E_i / w_i, with E_i exponential (Efraimidis
and Spirakis). The probability that trajectory i is among them, given the others, is 1 − exp(−w_i τ), where τ is
the (B+1)-th smallest key. (1 / (N p) with p the share of the weight would be biased.)

E_i = −ln u_i with u_i from a hash, and −ln u ≥ 1 − u. So a key can be as small as t only where u is at least
1 − t · max w. Most rows cost a hash and a comparison with that floor; weights and keys are computed above it. A
wrong guess at t costs time, and never changes what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reval_core.config import Replay
from reval_core.facts import SCHEMAS
from reval_core.files import digest
from reval_core.learning.noise import Noise
from reval_core.store import Store

PRIORITY_OFFSET = 1e-3
"""Added to |Δ|, so that a trajectory whose residual is 0 can still be drawn."""

# What a weight goes by, the largest of that in the buffer (DuckDB knows the extremes of a column without reading
# it), and the weight, which never falls as that rises.
_WEIGHTS = {
    "uniform": ("0", "max(0)", "{} + 1.0::DOUBLE"),
    "prioritised": (
        "abs(delta)",
        "greatest(max(delta), -min(delta))",
        f"pow({{}} + {PRIORITY_OFFSET}, $strength)",
    ),
    "fresh": ("round", "max(round)", "pow($strength, $round - {})"),
}

# The hashes are the same under any number of threads. A seed moves all ids to a far place of its own, so unlike
# hash(id, seed) they are independent between seeds. u in (0, 1]: 18446744073709551617 is 2^64 + 1.
_KEYS = """
    SELECT place, w, -ln((h::DOUBLE + 1) / 18446744073709551617.0) / w AS key
    FROM (
        SELECT trajectory_id AS id, rowid AS place, {weight} AS w, hash(trajectory_id + $seed) AS h FROM buffer
    )
    WHERE h >= $floor AND key <= $bound
    ORDER BY key, id
    LIMIT $limit
"""

_SAMPLED_ROWS = 50_000
"""About how many rows the mean weight is estimated from."""

_COLUMNS = """
    trajectory_id, round AS trajectory_round, shard, row, shard_digest, reward, advantage,
    reference, log_ref, value_ref
"""


@dataclass(frozen=True)
class _Weights:
    """The weights of the live trajectories in a round."""

    sql: str
    parameters: dict[str, float]
    live: int
    largest: float
    mean: float
    """An estimate."""


def draw_round(
    store: Store, settings: Replay, round: int, batch: int, updates: int, seed: int, noise: Noise | None = None
) -> pa.Table:
    """The draws of all updates of a round, from the buffer as it stands: rows of the table `draws`.

    Each update gets `batch` trajectories, or all there are if there are fewer. `noise` is recorded with them.
    """
    draws = [_fresh_batch(store, round)] if settings.first == "fresh" else []
    seeds = [_seed(seed, round, update) for update in range(len(draws) + 1, updates + 1)]
    draws += _draws(store, settings, round, batch, seeds)
    return pa.concat_tables(_as_draw(rows, round, update, noise) for update, rows in enumerate(draws, start=1))


def residual_left(store: Store, beta: float) -> float:
    """ρ, the share of the residual that is left: mean |Δ(τ)| over mean |r(τ)/β|, both over the live buffer.

    The residuals are those on record last: of the update that a trajectory was fed to last, or from when it was
    scored. Without V in Δ or with ReVal's, mean |r/β| is what mean |Δ| would be were the policy the reference, so ρ
    is 1 then. Where every reward is 0, ρ is 0 if every residual is, else 1: all that there is is left.
    """
    rows = store.query("SELECT delta, reward FROM buffer")
    # fsum rounds once, at the end: the order of the rows, which a database made again may change, does not matter.
    deltas, rewards = (math.fsum(np.abs(rows.column(name).to_numpy())) for name in ("delta", "reward"))
    if rewards == 0:
        return float(deltas > 0)
    return deltas * beta / rewards


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


def _draws(store: Store, settings: Replay, round: int, batch: int, seeds: Sequence[int]) -> list[pa.Table]:
    """One draw a seed. What is drawn is looked up once for all of them."""
    if not seeds:
        return []
    weights = _weights(store, settings, round)
    keys = [_smallest_keys(store, weights, batch, seed) for seed in seeds]
    drawn = [found.slice(0, batch) for found in keys]
    rows = _rows_at(store, np.concatenate([one.column("place").to_numpy() for one in drawn]))
    starts = np.cumsum([0, *map(len, drawn)])
    return [
        _with_probability(rows.slice(start, len(one)), _inclusion(found, weights, settings, batch), settings, round)
        for start, one, found in zip(starts, drawn, keys, strict=False)
    ]


def _weights(store: Store, settings: Replay, round: int) -> _Weights:
    by, most, weight = _WEIGHTS[settings.sampling]
    parameters: dict[str, float] = {}
    if settings.sampling == "prioritised":
        parameters = {"strength": settings.priority_exponent}
    elif settings.sampling == "fresh":
        parameters = {"strength": settings.age_decay, "round": round}
    live = store.query("SELECT count(*) AS live FROM buffer").column("live")[0].as_py()
    percent = min(100.0, 100 * _SAMPLED_ROWS / max(1, live))
    spread = store.query(
        f"""
        SELECT
            (SELECT {weight.format(most)} FROM buffer) AS largest,
            (SELECT avg({weight.format(by)}) FROM buffer TABLESAMPLE system({percent}%)) AS mean
        """,
        **parameters,
    ).to_pylist()[0]
    largest, mean = (math.nan if value is None else value for value in spread.values())
    return _Weights(weight.format(by), parameters, live, largest, mean)


def _smallest_keys(store: Store, weights: _Weights, batch: int, seed: int) -> pa.Table:
    """The places, weights and keys of the `batch` + 1 smallest keys, or of all there are; smallest first."""
    # Six deviations more than are needed, so that the first guess is nearly always enough.
    guess = batch + 1 + 6 * math.sqrt(batch + 1)
    bound = guess / (weights.live * weights.mean) if weights.live > guess else math.inf
    while True:
        reach = 1.000001 * bound * weights.largest  # beyond the rounding of keys
        bounded = reach < 1  # false for NaN
        found = store.query(
            _KEYS.format(weight=weights.sql),
            seed=seed,
            floor=2**64 - int(2**64 * reach) if bounded else 0,
            bound=bound if bounded else math.nan,  # DuckDB has nothing above NaN
            limit=batch + 1,
            **weights.parameters,
        )
        if not bounded or len(found) > batch:
            return found
        bound *= 4


def _rows_at(store: Store, places: np.ndarray) -> pa.Table:
    """The buffer's rows at these places, in this order. Places hold as long as nothing is written."""
    distinct, order = np.unique(places, return_inverse=True)
    found = store.query(
        f"""
        SELECT {_COLUMNS} FROM buffer JOIN (SELECT unnest($places::BIGINT[]) AS place) ON buffer.rowid = place
        ORDER BY place
        """,
        places=str(distinct.tolist()),  # thousands of numbers are bound faster as one text
    )
    return found.take(pa.array(order))


def _inclusion(found: pa.Table, weights: _Weights, settings: Replay, batch: int) -> np.ndarray:
    """The inclusion probability of each drawn row, from the first key that was not drawn."""
    if len(found) <= batch:
        return np.ones(len(found))
    if settings.sampling == "uniform":
        return np.full(batch, batch / weights.live)
    threshold = found.column("key")[batch].as_py()
    return -np.expm1(-found.column("w").to_numpy()[:batch] * threshold)


def _with_probability(rows: pa.Table, probability: np.ndarray, settings: Replay, round: int) -> pa.Table:
    weight = np.ones(len(rows))
    if settings.sampling == "prioritised":
        weight = (probability.min() / probability) ** importance_exponent(settings, round)
    extra = {"source": pa.array(["buffer"] * len(rows)), "probability": probability, "weight": weight}
    for name, values in extra.items():
        rows = rows.append_column(name, pa.array(values))
    return rows


def _as_draw(rows: pa.Table, round: int, update: int, noise: Noise | None) -> pa.Table:
    count = len(rows)
    columns = {
        **{name: rows.column(name) for name in rows.column_names},
        "round": pa.array(np.full(count, round)),
        "update": pa.array(np.full(count, update)),
        "position": pa.array(np.arange(count)),
        "staleness": pa.array(round - rows.column("trajectory_round").to_numpy()),
        "noise_logprob": pa.array([noise and noise.logprob] * count, pa.float64()),
        "noise_value": pa.array([noise and noise.value] * count, pa.float64()),
    }
    schema = SCHEMAS["draws"]
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _seed(seed: int, round: int, update: int) -> int:
    return int(digest("draw", seed, round, update)[:15], 16)
