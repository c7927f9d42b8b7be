"""Draws from the buffer: their contents, and determinism given the seed."""

from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from reval_core.atomic_files import digest
from reval_core.config import Replay
from reval_core.replay_buffer.index import Store
from reval_core.replay_buffer.sampling import draw_round, effective_sample_size, importance_exponent, normalised
from tests.buffers import buffer_of

BATCH = 8


@pytest.fixture
def make_store(tmp_path: Path):
    return partial(buffer_of, tmp_path)


def draw(
    store: Store, settings: Replay, seed: int, updates: int = 1, round: int = 1, batch: int = BATCH
) -> pa.Table:
    return draw_round(store, settings, round=round, batch=batch, updates=updates, seed=seed)


def settings(sampling: str, **more) -> Replay:
    return Replay(capacity=1000, sampling=sampling, first="buffer", **more)


@pytest.mark.parametrize("sampling", ["uniform", "prioritised", "fresh"])
def test_the_same_seed_gives_the_same_draw(make_store, sampling):
    store = make_store(np.linspace(0, 5, 40))
    one, again, other = (draw(store, settings(sampling), seed=seed, updates=3) for seed in (1, 1, 2))
    assert one.equals(again)
    assert not one.equals(other)


def test_no_trajectory_is_drawn_twice_in_an_update(make_store):
    draws = draw(make_store(np.linspace(0, 5, 40)), settings("prioritised"), seed=0, updates=20).to_pandas()
    assert not draws.duplicated(["update", "trajectory_id"]).any()


def test_importance_weights_are_annealed_powers_of_the_probabilities(make_store):
    replay = settings("prioritised", importance_exponent=(0.4, 1.0), importance_rounds=11)
    assert importance_exponent(replay, 1) == 0.4
    assert importance_exponent(replay, 6) == pytest.approx(0.7)
    assert importance_exponent(replay, 500) == 1.0
    store = make_store(np.linspace(0, 5, 40), np.repeat([3, 4, 5, 6], 10))
    found = draw(store, replay, seed=0, round=6).to_pandas()
    expected = (0.7**found.staleness / found.probability) ** 0.7  # the decay is not corrected
    np.testing.assert_allclose(found.weight, expected / expected.mean(), rtol=1e-6)


def test_a_residual_of_zero_does_not_change_other_weights(make_store):
    replay = settings("prioritised", importance_exponent=(1.0, 1.0))
    deltas = np.append(np.ones(15), 0)
    without = draw(make_store(np.ones(15)), replay, seed=0, batch=16)
    assert set(without.column("weight").to_pylist()) == {1.0}
    store = make_store(np.append(deltas, np.ones(16)))  # so that the draw is a proper subset
    draws = pd.concat(draw(store, replay, seed=seed, batch=16).to_pandas() for seed in range(40))
    assert (draws.trajectory_id == 15).any()
    assert draws.weight[draws.trajectory_id != 15].min() > 0.75


def test_weights_have_the_mean_one_and_none_is_above_the_cap():
    unscaled = np.random.default_rng(0).lognormal(0, 3, 64)
    free = normalised(unscaled, 1e9)
    np.testing.assert_allclose(free, unscaled / unscaled.mean())
    capped = normalised(unscaled, 4.0)
    assert capped.mean() == pytest.approx(1)
    assert capped.max() == pytest.approx(4)
    below = capped < 3.999
    assert len(set(free[~below])) > 1
    np.testing.assert_allclose(capped[below] / free[below], (capped / free)[below][0])  # in proportion
    np.testing.assert_allclose(normalised(unscaled, 1.0), np.ones(64))


@pytest.mark.parametrize("exponent", [0.6, 2.0])
def test_a_draw_does_not_depend_on_the_scale_of_the_residuals(make_store, tmp_path, exponent):
    deltas = np.random.default_rng(0).lognormal(0, 2, 200)
    replay = settings("prioritised", priority_exponent=exponent)
    drawn = draw(make_store(deltas), replay, seed=3, updates=4)
    (tmp_path / "small").mkdir()
    assert drawn.equals(draw(buffer_of(tmp_path / "small", deltas * 2.0**-20), replay, seed=3, updates=4))


@pytest.mark.parametrize("deltas", [np.zeros(40), np.full(40, 3.0)], ids=["zero", "equal"])
def test_equal_residuals_are_drawn_by_age_alone(make_store, deltas):
    store = make_store(deltas, np.repeat([1, 2, 3, 4], 10))
    one, other = (draw(store, settings(kind), seed=0, round=4).to_pandas() for kind in ("prioritised", "fresh"))
    assert one.trajectory_id.tolist() == other.trajectory_id.tolist()


def test_an_age_that_all_trajectories_share_does_not_change_their_weights(make_store):
    """All are of one age, and it grows without end."""
    store = make_store(np.linspace(0, 5, 40), [0] * 40)
    late = draw(store, settings("prioritised"), seed=0, round=100_000).to_pandas()
    assert late.weight.mean() == pytest.approx(1)
    assert late.probability.between(0.01, 0.99).all()


def test_very_old_trajectories_fill_the_rest_of_a_draw(make_store):
    store = make_store(np.ones(12), [1] * 10 + [90_000] * 2)
    drawn = draw(store, settings("prioritised"), seed=0, round=90_000).to_pandas()
    assert len(drawn) == BATCH
    assert set(drawn.trajectory_id) >= {10, 11}
    assert np.isfinite(drawn.weight).all()


def test_an_empty_buffer_gives_an_empty_draw(make_store):
    assert len(draw(make_store([]), settings("prioritised"), seed=0)) == 0


def test_the_first_draw_is_the_whole_fresh_batch_and_the_others_come_from_the_buffer(make_store):
    store = make_store(np.ones(24), np.repeat([1, 2, 3], 8))
    replay = Replay(capacity=1000, first="fresh")
    draws = draw(store, replay, seed=0, updates=3, round=3).to_pandas()
    first = draws[draws["update"] == 1]
    assert first.trajectory_id.tolist() == list(range(16, 24))
    assert set(first.source) == {"fresh"}
    assert set(draws[draws["update"] > 1].source) == {"buffer"}
    assert draws[draws["update"] > 1].staleness.max() > 0


def test_a_buffer_smaller_than_a_batch_is_drawn_completely(make_store):
    draws = draw(make_store(np.ones(5)), settings("prioritised"), seed=0).to_pandas()
    assert sorted(draws.trajectory_id) == list(range(5))
    assert set(draws.probability) == {1.0}


def test_the_effective_sample_size_counts_equal_weights_fully():
    assert effective_sample_size(np.ones(7)) == pytest.approx(7)
    assert effective_sample_size(np.array([1.0, 0, 0])) == pytest.approx(1)


SKEWS = {
    "even": lambda rng: rng.random(5000),
    "heavy-tailed": lambda rng: rng.lognormal(0, 3, 5000),
    "one giant": lambda rng: np.append(np.zeros(4999), 1e6),
    "all zero": lambda rng: np.zeros(5000),
    "with a NaN": lambda rng: np.append(rng.random(4999), np.nan),
}


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("decay", [1.0, 0.98, 0.5, 0.01])
def test_a_draw_is_the_smallest_keys_of_the_whole_buffer(make_store, skew, decay):
    """Keys are computed only for a few trajectories; sorting the keys of all gives the same draw."""
    deltas = SKEWS[skew](np.random.default_rng(0))
    store = make_store(deltas, 1 + np.arange(5000) // 50)
    replay = settings("prioritised", priority_exponent=0.8, age_decay=decay)
    drawn = draw(store, replay, seed=5, batch=64, round=100)
    assert drawn.column("trajectory_id").to_pylist() == smallest_keys(
        store, 100, weight(deltas, 0.8, decay, 100), 64
    )


def test_draws_are_the_same_under_any_number_of_threads(make_store, tmp_path):
    """The buffer has several row groups, which DuckDB distributes over its threads."""
    deltas = np.random.default_rng(0).lognormal(0, 1, 400_000)
    store = make_store(deltas, 1 + np.arange(400_000) // 10_000)
    replay = settings("prioritised")
    draws = []
    for threads in (1, 2, 3):
        with duckdb.connect(tmp_path / "replay.duckdb") as connection:
            connection.execute(f"SET threads = {threads}")
            draws.append(draw(store, replay, seed=5, updates=2, batch=500, round=40))
    assert draws[0].equals(draws[1])
    assert draws[0].equals(draws[2])
    first = draws[0].column("trajectory_id").to_pylist()[:500]
    assert first == smallest_keys(store, 40, weight(deltas, 0.6, 0.7, 40), 500)


def test_draws_do_not_depend_on_the_order_of_the_rows(make_store, tmp_path):
    """A reindexed database may have another order."""
    store = make_store(np.random.default_rng(0).lognormal(0, 2, 5000), 1 + np.arange(5000) // 500)
    one = draw(store, settings("prioritised"), seed=5, updates=2, round=10)
    store.close()
    with duckdb.connect(tmp_path / "replay.duckdb") as connection:
        connection.execute("CREATE TABLE mixed AS SELECT * FROM buffer ORDER BY hash(trajectory_id)")
        connection.execute("DELETE FROM buffer")
        connection.execute("INSERT INTO buffer SELECT * FROM mixed")
    assert draw(store, settings("prioritised"), seed=5, updates=2, round=10).equals(one)


def weight(deltas: np.ndarray, exponent: float, decay: float, newest: int) -> str:
    """The weight of a trajectory, as an SQL expression."""
    mean = np.abs(deltas[np.isfinite(deltas)]).astype(np.float32).astype(float).mean() or 1.0
    return f"(pow({decay}::DOUBLE, {newest} - round) * pow(abs(delta) / {mean}::DOUBLE + 0.1, {exponent}))"


def smallest_keys(store: Store, round: int, weight: str, batch: int) -> list[int]:
    """The trajectories with the smallest keys under seed 5, computed from all keys."""
    shift = int(digest("draw", 5, round, 1)[:15], 16)
    key = f"-ln((hash(trajectory_id + {shift})::DOUBLE + 1) / 18446744073709551617.0) / {weight}"
    found = store.query(f"SELECT trajectory_id FROM buffer ORDER BY {key}, trajectory_id LIMIT {batch}")
    return found.column("trajectory_id").to_pylist()
