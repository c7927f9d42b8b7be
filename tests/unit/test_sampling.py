"""Draws from the buffer: what a draw holds, and that the seed alone decides. Frequencies are next door."""

from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from reval_core.config import Replay
from reval_core.files import digest
from reval_core.sampling import draw_round, effective_sample_size, importance_exponent
from reval_core.store import Store
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
    found = draw(make_store(np.linspace(0, 5, 40)), replay, seed=0, round=6).to_pandas()
    expected = (found.probability.min() / found.probability) ** 0.7
    np.testing.assert_allclose(found.weight, expected, rtol=1e-6)
    assert found.weight.max() == 1.0


def test_the_first_draw_is_the_whole_fresh_batch_and_the_others_come_from_the_buffer(make_store):
    store = make_store(np.ones(24), np.repeat([1, 2, 3], 8))
    replay = Replay(capacity=1000, first="fresh")
    draws = draw(store, replay, seed=0, updates=3, round=3).to_pandas()
    first = draws[draws["update"] == 1]
    assert first.trajectory_id.tolist() == list(range(16, 24))
    assert set(first.source) == {"fresh"}
    assert set(draws[draws["update"] > 1].source) == {"buffer"}
    assert draws[draws["update"] > 1].staleness.max() > 0


def test_a_buffer_smaller_than_a_batch_is_drawn_whole(make_store):
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
def test_a_draw_is_the_smallest_keys_of_the_whole_buffer(make_store, skew):
    """Keys are computed of few trajectories; sorting the keys of all gives the same draw."""
    store = make_store(SKEWS[skew](np.random.default_rng(0)))
    drawn = draw(store, settings("prioritised", priority_exponent=0.8), seed=5, batch=64)
    assert drawn.column("trajectory_id").to_pylist() == smallest_keys(store, "pow(abs(delta) + 0.001, 0.8)", 64)


def test_draws_are_the_same_under_any_number_of_threads(make_store, tmp_path):
    """Of a buffer of several row groups, which DuckDB spreads over its threads."""
    store = make_store(np.random.default_rng(0).lognormal(0, 1, 400_000))
    replay = settings("prioritised")
    draws = []
    for threads in (1, 2, 3):
        with duckdb.connect(tmp_path / "replay.duckdb") as connection:
            connection.execute(f"SET threads = {threads}")
            draws.append(draw(store, replay, seed=5, updates=2, batch=500))
    assert draws[0].equals(draws[1])
    assert draws[0].equals(draws[2])
    first = draws[0].column("trajectory_id").to_pylist()[:500]
    assert first == smallest_keys(store, "pow(abs(delta) + 0.001, 0.6)", 500)


def smallest_keys(store: Store, weight: str, batch: int) -> list[int]:
    """The trajectories of the smallest keys under seed 5, from the keys of all."""
    shift = int(digest("draw", 5, 1, 1)[:15], 16)
    key = f"-ln((hash(trajectory_id + {shift})::DOUBLE + 1) / 18446744073709551617.0) / {weight}"
    found = store.query(f"SELECT trajectory_id FROM buffer ORDER BY {key}, trajectory_id LIMIT {batch}")
    return found.column("trajectory_id").to_pylist()
