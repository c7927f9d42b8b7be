"""Draws from the buffer: uniform is uniform, priorities are honoured, seeds decide."""

import itertools
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from reval_core.config import Replay
from reval_core.sampling import draw_round, effective_sample_size, importance_exponent
from reval_core.store import Store

BATCH = 8


@pytest.fixture
def make_store(tmp_path: Path):
    def make(deltas, rounds=None) -> Store:
        count = len(deltas)
        store = Store(tmp_path, tmp_path / "replay.duckdb", capacity=1000)
        store.build([])
        store.close()
        rows = pa.table(
            {
                "trajectory_id": np.arange(count),
                "round": np.array(rounds if rounds is not None else [1] * count),
                "shard": np.zeros(count, dtype=int),
                "row": np.arange(count),
                "shard_digest": ["digest"] * count,
                "reward": np.ones(count),
                "advantage": np.zeros(count),
                "reference": ["reference"] * count,
                "log_ref": np.zeros(count),
                "value_ref": np.zeros(count),
                "delta": np.array(deltas, dtype=float),
            }
        )
        connection = duckdb.connect(tmp_path / "replay.duckdb")
        connection.register("given", rows)
        connection.execute("INSERT INTO buffer SELECT * FROM given")
        connection.close()
        return store

    return make


def draw(
    store: Store, settings: Replay, seed: int, updates: int = 1, round: int = 1, batch: int = BATCH
) -> pa.Table:
    return draw_round(store, settings, round=round, batch=batch, updates=updates, seed=seed)


def settings(sampling: str, **more) -> Replay:
    return Replay(capacity=1000, sampling=sampling, first="buffer", **more)


def test_a_uniform_draw_is_uniform(make_store):
    """Chi-square over 40 trajectories and 600 draws: 99.9% of uniform draws stay below 73."""
    store = make_store(np.linspace(0, 5, 40))
    draws = draw(store, settings("uniform"), seed=0, updates=600)
    counts = np.bincount(draws.column("trajectory_id").to_numpy(), minlength=40)
    expected = 600 * BATCH / 40
    # Drawing without replacement narrows the spread by (1 - 8/40).
    assert ((counts - expected) ** 2 / expected).sum() / (1 - BATCH / 40) < 73
    assert set(draws.column("probability").to_pylist()) == {BATCH / 40}


def test_draws_under_different_seeds_are_independent(make_store):
    """Two draws of 8 from 40 share 1.6 on average, and a pair is drawn together 56/1560 of the time."""
    store = make_store(np.ones(40))
    draws = draw(store, settings("uniform"), seed=3, updates=400).to_pandas()
    chosen = [set(group) for _, group in draws.groupby("update")["trajectory_id"]]
    overlaps = [len(one & other) for one, other in itertools.pairwise(chosen)]
    assert np.mean(overlaps) == pytest.approx(1.6, abs=0.2)
    together = np.mean([{0, 1} <= group for group in chosen])
    assert together == pytest.approx(56 / 1560, abs=0.03)


@pytest.mark.parametrize("sampling", ["uniform", "prioritised", "fresh"])
def test_the_same_seed_gives_the_same_draw(make_store, sampling):
    store = make_store(np.linspace(0, 5, 40))
    one, again, other = (draw(store, settings(sampling), seed=seed, updates=3) for seed in (1, 1, 2))
    assert one.equals(again)
    assert not one.equals(other)


def test_no_trajectory_is_drawn_twice_in_an_update(make_store):
    draws = draw(make_store(np.linspace(0, 5, 40)), settings("prioritised"), seed=0, updates=20).to_pandas()
    assert not draws.duplicated(["update", "trajectory_id"]).any()


def test_priorities_set_how_often_a_trajectory_is_drawn(make_store):
    """Inclusion frequencies against a brute-force draw without replacement by the same weights."""
    deltas = np.array([0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    replay = settings("prioritised", priority_exponent=0.6)
    draws = draw(make_store(deltas), replay, seed=0, updates=700, batch=3)
    found = np.bincount(draws.column("trajectory_id").to_numpy(), minlength=8) / 700

    weights = (deltas + 1e-3) ** 0.6
    rng = np.random.default_rng(0)
    brute = np.zeros(8)
    for _ in range(20_000):
        brute[rng.choice(8, size=3, replace=False, p=weights / weights.sum())] += 1 / 20_000
    np.testing.assert_allclose(found, brute, atol=0.04)


def test_recorded_probabilities_make_estimates_unbiased(make_store):
    """The mean of x over the buffer from Σ x/p over a draw (Horvitz and Thompson), over 700 draws."""
    deltas = np.linspace(0.1, 6, 60)
    values = deltas**2
    draws = draw(make_store(deltas), settings("prioritised"), seed=0, updates=700, batch=10).to_pandas()
    estimates = (values[draws.trajectory_id] / draws.probability).groupby(draws["update"]).sum() / 60
    error = 3 * estimates.std() / np.sqrt(700)
    assert estimates.mean() == pytest.approx(values.mean(), abs=error)
    assert error < 0.05 * values.mean()


def test_importance_weights_are_annealed_powers_of_the_probabilities(make_store):
    replay = settings("prioritised", importance_exponent=(0.4, 1.0), importance_rounds=11)
    assert importance_exponent(replay, 1) == 0.4
    assert importance_exponent(replay, 6) == pytest.approx(0.7)
    assert importance_exponent(replay, 500) == 1.0
    found = draw(make_store(np.linspace(0, 5, 40)), replay, seed=0, round=6).to_pandas()
    expected = (found.probability.min() / found.probability) ** 0.7
    np.testing.assert_allclose(found.weight, expected, rtol=1e-6)
    assert found.weight.max() == 1.0


def test_fresh_sampling_prefers_the_young_by_their_decay(make_store):
    rounds = np.repeat([1, 2, 3, 4], 50)
    store = make_store(np.ones(200), rounds)
    draws = draw(store, settings("fresh", age_decay=0.5), seed=0, updates=400, round=4).to_pandas()
    shares = draws.groupby("staleness").size() / len(draws)
    np.testing.assert_allclose(shares[[0, 1, 2, 3]], np.array([8, 4, 2, 1]) / 15, atol=0.03)


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
