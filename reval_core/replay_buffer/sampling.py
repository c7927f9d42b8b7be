"""Sampling from the replay buffer, in SQL: reproducible from a seed, with all probabilities recorded.

A weighted sample of size B without replacement consists of the B smallest keys E_i / w_i, with E_i exponential
(Efraimidis and Spirakis). The probability that trajectory i is among them, given the others, is 1 − exp(−w_i τ),
where τ is the (B+1)-th smallest key. (1 / (N p) with p the share of the weight would be biased.)

E_i = −ln u_i with u_i from a hash, and −ln u ≥ 1 − u. So a key can be at most t only if u is at least
1 − t · max w. For most rows only a hash is computed and compared with this threshold; weights and keys are computed
only above it. The weights of old rounds are small, so their threshold is higher, and the oldest rounds are not read
at all. A wrong guess of t costs time, but never changes which rows are drawn.

A weight is priority × decay: the priority depends on |Δ|, the decay on age. Importance weights correct for the
priority only: with exponent 1 an update estimates the mean over the buffer, weighted by the decay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from reval_core.atomic_files import digest
from reval_core.config import Replay
from reval_core.model.noise import Noise
from reval_core.replay_buffer.index import Store
from reval_core.storage.tables import SCHEMAS

# The priority of a residual. It is non-decreasing in |Δ|, so the largest priority is that of the largest residual
# (DuckDB knows the extremes of a column without reading it).
_PRIORITY = "pow(abs({}) / $mean + $offset, $exponent)"

# The sum of |Δ| as a sum of integers, which does not depend on the order of rows or the number of threads.
_SUM_OF_RESIDUALS = "sum((abs(delta)::DOUBLE * $scale)::BIGINT)"

LEAST_DECAY = 1e-100
"""The smallest decay, so that the weight of every trajectory is above 0."""

_OLD = 1 / 64
"""Trajectories with a decay below this are rarely drawn, and have a higher threshold."""

# The hashes do not depend on the number of threads. A seed shifts all ids by a large offset, so that unlike
# hash(id, seed) the hashes are independent between seeds. u in (0, 1]: 18446744073709551617 is 2^64 + 1.
_KEYS = f"""
    SELECT place, decay, w, -ln((h::DOUBLE + 1) / 18446744073709551617.0) / w AS key
    FROM (
        SELECT id, place, h, decay, decay * {{priority}} AS w
        FROM (
            SELECT
                trajectory_id AS id, rowid AS place, round, delta, hash(trajectory_id + $seed) AS h,
                greatest(pow($decay, $newest - round), {LEAST_DECAY}) AS decay
            FROM buffer
        )
        WHERE round >= $oldest AND h >= CASE WHEN round >= $young THEN $floor ELSE $higher END
    )
    WHERE key <= $bound
    ORDER BY key, id
    LIMIT $limit
"""

_SAMPLED_ROWS = 50_000
"""The approximate number of rows from which the mean priority is estimated."""

_COLUMNS = """
    trajectory_id, round AS trajectory_round, shard, row, shard_digest, reward, advantage,
    reference, log_ref, value_ref
"""


@dataclass(frozen=True)
class _Weights:
    """The weights of the live trajectories in a round, priority × decay."""

    priority: str
    """The SQL expression of the priority."""
    parameters: dict[str, float]
    """The parameters of `priority`."""
    decay: float
    """The factor by which each round of age multiplies a weight."""
    newest: int
    """The round of the newest trajectories, whose decay is 1."""
    live: int
    largest: float
    """An upper bound of the weights."""
    total: float
    """An estimate of the sum of the weights."""

    def first_round(self, share: float) -> int:
        """A round such that the decay of all earlier rounds is below `share`."""
        return 0 if self.decay == 1 else self.newest - math.ceil(math.log(share) / math.log(self.decay))


def draw_round(
    store: Store, settings: Replay, round: int, batch: int, updates: int, seed: int, noise: Noise | None = None
) -> pa.Table:
    """Sample the batches of all updates of a round from the current buffer.

    Args:
        store: The index with the live buffer.
        settings: The section `replay` of the config.
        round: The round.
        batch: B, the number of trajectories per update; the whole buffer if it has fewer.
        updates: K, the number of updates.
        seed: The seed of the run.
        noise: The scoring noise, which is recorded with the draws.

    Returns:
        Rows of the table `draws`.
    """
    draws = [_fresh_batch(store, round)] if settings.first == "fresh" else []
    seeds = [_seed(seed, round, update) for update in range(len(draws) + 1, updates + 1)]
    draws += _draws(store, settings, round, batch, seeds)
    return pa.concat_tables(_as_draw(rows, round, update, noise) for update, rows in enumerate(draws, start=1))


def residual_left(store: Store, beta: float) -> float:
    """ρ, the remaining share of the residual: mean |Δ(τ)| / mean |r(τ)/β|, both over the live buffer.

    The residuals are the most recent ones: of the last update that a trajectory was fed to, or of its scoring. For
    objectives without V in Δ, and for ReVal, mean |Δ| equals mean |r/β| while the policy is the reference, so that
    ρ = 1. If all rewards are 0, ρ is 0 if all residuals are 0, else 1.
    """
    rows = store.query("SELECT delta, reward FROM buffer")
    # fsum rounds only once: the result does not depend on the order of rows, which differs in a rebuilt database.
    deltas, rewards = (math.fsum(np.abs(rows.column(name).to_numpy())) for name in ("delta", "reward"))
    if rewards == 0:
        return float(deltas > 0)
    return deltas * beta / rewards


def effective_sample_size(weights: np.ndarray) -> float:
    """(Σw)² / Σw²: the equivalent number of equally weighted trajectories."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def importance_exponent(settings: Replay, round: int) -> float:
    """The exponent of the importance weights in round `round` (counted from 1), annealed linearly."""
    first, last = settings.importance_exponent
    progress = min(1.0, (round - 1) / max(1, settings.importance_rounds - 1))
    return first + (last - first) * progress


def normalised(weights: np.ndarray, cap: float) -> np.ndarray:
    """The weights scaled to a mean of 1, with none above `cap`.

    The excess above the cap is distributed to the other weights in proportion, so that the mean stays 1: an outlier
    neither dominates the update nor shrinks it.
    """
    scaled = weights.copy()
    capped = np.zeros(len(scaled), dtype=bool)
    while not capped.all():
        scaled[~capped] *= (len(scaled) - cap * capped.sum()) / scaled[~capped].sum()
        above = scaled > cap * (1 + 1e-12)
        if not above.any():
            break
        scaled[above] = cap
        capped |= above
    return scaled


def _fresh_batch(store: Store, round: int) -> pa.Table:
    return store.query(
        f"""
        SELECT {_COLUMNS}, 'fresh' AS source, 1.0::DOUBLE AS probability, 1.0::REAL AS weight
        FROM buffer WHERE round = $round ORDER BY trajectory_id
        """,
        round=round,
    )


def _draws(store: Store, settings: Replay, round: int, batch: int, seeds: Sequence[int]) -> list[pa.Table]:
    """One draw per seed. The rows of all draws are read in a single query."""
    if not seeds:
        return []
    weights = _weights(store, settings)
    keys = [_smallest_keys(store, weights, batch, seed) for seed in seeds]
    drawn = [found.slice(0, batch) for found in keys]
    rows = _rows_at(store, np.concatenate([one.column("place").to_numpy() for one in drawn]))
    starts = np.cumsum([0, *map(len, drawn)])
    return [
        _as_rows(rows.slice(start, len(one)), one, _inclusion(found, weights, settings, batch), settings, round)
        for start, one, found in zip(starts, drawn, keys, strict=False)
    ]


def _weights(store: Store, settings: Replay) -> _Weights:
    found = store.query("SELECT count(*) AS live, max(round) AS newest FROM buffer").to_pylist()[0]
    live, newest = found["live"], found["newest"] or 0
    decay = 1.0 if settings.sampling == "uniform" else settings.age_decay
    weights = _Weights("1.0::DOUBLE", {}, decay, newest, live, largest=1.0, total=live)
    if decay < 1:
        weights = replace(weights, total=_sum_of_decays(store, weights))
    if settings.sampling == "prioritised":
        parameters, largest, mean = _priorities(store, settings, live)
        priority = _PRIORITY.format("delta")
        weights = replace(
            weights, priority=priority, parameters=parameters, largest=largest, total=weights.total * mean
        )
    return weights


def _sum_of_decays(store: Store, weights: _Weights) -> float:
    """The sum of decays over the buffer, without rounds that are too old to matter."""
    oldest = weights.first_round(1e-3)
    sums = store.query(
        "SELECT round, count(*) AS live FROM buffer WHERE round >= $oldest GROUP BY round", oldest=oldest
    )
    ages = weights.newest - sums.column("round").to_numpy()
    return float(weights.decay**ages @ sums.column("live").to_numpy())


def _priorities(store: Store, settings: Replay, live: int) -> tuple[dict[str, float], float, float]:
    """The parameters of `_PRIORITY`, the largest priority in the buffer and an estimate of the mean priority."""
    [largest] = store.query("SELECT greatest(max(delta), -min(delta)) FROM buffer").column(0).to_pylist()
    exponent, offset = settings.priority_exponent, settings.priority_offset
    parameters = {"mean": _mean_residual(store, largest), "offset": offset, "exponent": exponent}
    percent = min(100.0, 100 * _SAMPLED_ROWS / max(1, live))
    sample = f"SELECT avg({_PRIORITY.format('delta')}) FROM buffer TABLESAMPLE system({percent}%)"
    [mean] = store.query(sample, **parameters).column(0).to_pylist()
    most, mean = (math.nan if value is None else value for value in (largest, mean))
    return parameters, (most / parameters["mean"] + offset) ** exponent, mean


def _mean_residual(store: Store, largest: float | None) -> float:
    """The mean |Δ| over the buffer, given its maximum `largest`; 1 if all are 0. Non-finite values are skipped."""
    finite = ""
    if largest is not None and not math.isfinite(largest):
        finite = "WHERE isfinite(delta)"
        [largest] = store.query(f"SELECT max(abs(delta)) FROM buffer {finite}").column(0).to_pylist()
    if not largest:
        return 1.0
    scale = 2**40 / largest
    sums = store.query(f"SELECT {_SUM_OF_RESIDUALS}::DOUBLE / count(*) FROM buffer {finite}", scale=scale)
    mean: float = sums.column(0)[0].as_py() / scale
    return mean


def _smallest_keys(store: Store, weights: _Weights, batch: int, seed: int) -> pa.Table:
    """Places, decays, weights and keys of the `batch` + 1 smallest keys (or of all rows, if fewer), ascending."""
    # Six standard deviations more than needed, so that the first guess almost always suffices.
    guess = batch + 1 + 6 * math.sqrt(batch + 1)
    bound = guess / weights.total if weights.live > guess else math.inf
    while True:
        reach = 1.000001 * bound * weights.largest  # allows for the rounding of keys
        bounded = reach < 1  # false for NaN
        found = store.query(
            _KEYS.format(priority=weights.priority),
            seed=seed,
            decay=weights.decay,
            newest=weights.newest,
            bound=bound if bounded else math.nan,  # DuckDB sorts NaN above everything
            limit=batch + 1,
            **(_floors(weights, reach) if bounded else {"oldest": 0, "young": 0, "floor": 0, "higher": 0}),
            **weights.parameters,
        )
        if not bounded or len(found) > batch:
            return found
        bound *= 4


def _floors(weights: _Weights, reach: float) -> dict[str, int]:
    """The thresholds of hashes from round `young` on and before it, and the first round where any hash can pass."""
    return {
        "oldest": weights.first_round(2**-64 / reach),
        "young": weights.first_round(_OLD),
        "floor": 2**64 - int(2**64 * reach),
        "higher": 2**64 - int(2**64 * reach * _OLD),
    }


def _rows_at(store: Store, places: np.ndarray) -> pa.Table:
    """The buffer's rows at these places, in this order. Places (row ids) are valid until the next write."""
    distinct, order = np.unique(places, return_inverse=True)
    found = store.query(
        f"""
        SELECT {_COLUMNS} FROM buffer JOIN (SELECT unnest($places::BIGINT[]) AS place) ON buffer.rowid = place
        ORDER BY place
        """,
        places=str(distinct.tolist()),  # thousands of numbers are bound faster as a single string
    )
    return found.take(pa.array(order))


def _inclusion(found: pa.Table, weights: _Weights, settings: Replay, batch: int) -> np.ndarray:
    """The inclusion probability of each drawn row, computed from the smallest key that was not drawn."""
    if len(found) <= batch:
        return np.ones(len(found))
    if settings.sampling == "uniform":
        return np.full(batch, batch / weights.live)
    threshold = found.column("key")[batch].as_py()
    return -np.expm1(-found.column("w").to_numpy()[:batch] * threshold)


def _as_rows(rows: pa.Table, drawn: pa.Table, probability: np.ndarray, settings: Replay, round: int) -> pa.Table:
    weight = np.ones(len(rows))
    if settings.sampling == "prioritised":
        unscaled = (drawn.column("decay").to_numpy() / probability) ** importance_exponent(settings, round)
        weight = normalised(unscaled, settings.importance_cap)
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
