"""Draws as random events: how often, how independently, and with what recorded probability.

Six hundred draws, of fifty updates under each of twelve seeds, are compared with exact probabilities. Each test is
made such that a correct sampler would fail it with a probability below 1e-6 over the choice of seeds.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from reval_core.config import Replay
from reval_core.replay_buffer.sampling import draw_round
from tests.buffers import buffer_of

SEEDS, UPDATES, BATCH, LIVE = 12, 50, 8, 40
DRAWS = SEEDS * UPDATES
DELTAS = np.geomspace(0.02, 20, LIVE)
ROUNDS = np.repeat([1, 2, 3, 4], LIVE // 4)
DECAY = 0.3
AGED = DECAY ** (4.0 - ROUNDS)
WEIGHTS = {
    "uniform": np.ones(LIVE),
    "prioritised": (DELTAS / DELTAS.mean() + 0.1) ** 0.6 * AGED,
    "fresh": AGED,
}


@pytest.fixture(scope="module")
def draws(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """By sampling: the rows of all draws; `draw` counts them, seed by seed."""
    store = buffer_of(tmp_path_factory.mktemp("buffer"), DELTAS, ROUNDS)
    found = {}
    for sampling in WEIGHTS:
        replay = Replay(capacity=LIVE, sampling=sampling, first="buffer", age_decay=DECAY)
        parts = [draw_round(store, replay, 4, BATCH, UPDATES, seed).to_pandas() for seed in range(SEEDS)]
        found[sampling] = pd.concat(parts, keys=range(SEEDS), names=["seed", None]).reset_index("seed")
        found[sampling]["draw"] = found[sampling].seed * UPDATES + found[sampling]["update"] - 1
    store.close()
    return found


def drawn(draws: pd.DataFrame) -> np.ndarray:
    """Whether each draw contains each trajectory: (draws, trajectories)."""
    held = np.zeros((DRAWS, LIVE), dtype=bool)
    held[draws["draw"], draws.trajectory_id] = True
    return held


def inclusion(weights: np.ndarray) -> np.ndarray:
    """The probability that each trajectory is among the BATCH smallest of exponentials with these rates.

    ∫ P(fewer than BATCH of the others come before t) dP(its own key ≤ t), on a grid of its own probabilities.
    """
    grid = (np.arange(2000) + 0.5) / 2000
    probabilities = []
    for own, weight in enumerate(weights):
        times = -np.log1p(-grid) / weight
        earlier = np.zeros((BATCH, len(grid)))  # [k]: the probability that k of the others are smaller than t
        earlier[0] = 1
        for other in np.delete(weights, own):
            before = -np.expm1(-other * times)
            earlier[1:] = earlier[1:] * (1 - before) + earlier[:-1] * before
            earlier[0] *= 1 - before
        probabilities.append(earlier.sum(axis=0).mean())
    return np.array(probabilities)


def surprise(frequencies: np.ndarray, probabilities: np.ndarray, trials: int) -> float:
    """By Chernoff, frequencies this far off on the same side have a probability of at most exp(−this)."""
    shares = ((frequencies, probabilities), (1 - frequencies, 1 - probabilities))
    parts = [np.where(f > 0, f * np.log(np.where(f > 0, f, 1) / p), 0) for f, p in shares]
    return float(trials * sum(parts).max())


def allowed(tests: int) -> float:
    """The largest surprise over `tests` two-sided tests that a correct sampler exceeds once in a million."""
    return math.log(2 * tests / 1e-6)


def test_the_exact_probabilities_are_right() -> None:
    """They sum to the batch, are equal for equal weights, and agree with a brute-force draw."""
    assert inclusion(WEIGHTS["uniform"]) == pytest.approx(np.full(LIVE, BATCH / LIVE), abs=1e-6)
    exact = inclusion(WEIGHTS["prioritised"])
    assert exact.sum() == pytest.approx(BATCH, abs=1e-3)
    keys = np.random.default_rng(0).exponential(size=(20_000, LIVE)) / WEIGHTS["prioritised"]
    brute = (keys.argsort(axis=1).argsort(axis=1) < BATCH).mean(axis=0)
    assert surprise(brute, exact, 20_000) < allowed(LIVE)


@pytest.mark.parametrize("sampling", WEIGHTS)
def test_trajectories_are_drawn_as_often_as_their_weights_say(draws, sampling) -> None:
    found = drawn(draws[sampling]).mean(axis=0)
    exact = inclusion(WEIGHTS[sampling])
    assert surprise(found, exact, DRAWS) < allowed(LIVE)
    # The test has power: halving or doubling the exponent of the weights would be detected.
    if sampling != "uniform":
        for power in (0.5, 2):
            assert surprise(found, inclusion(WEIGHTS[sampling] ** power), DRAWS) > allowed(LIVE)


def test_every_pair_is_drawn_together_as_often_as_any_other(draws) -> None:
    held = drawn(draws["uniform"]).astype(float)
    together = (held.T @ held / DRAWS)[np.triu_indices(LIVE, 1)]
    expected = np.full_like(together, BATCH * (BATCH - 1) / (LIVE * (LIVE - 1)))
    assert surprise(together, expected, DRAWS) < allowed(len(together))


@pytest.mark.parametrize("sampling", WEIGHTS)
def test_draws_of_other_seeds_and_of_other_updates_are_independent(draws, sampling) -> None:
    """Independent draws share Σ π_i² trajectories on average; at most BATCH, so Bernstein bounds the mean."""
    held = drawn(draws[sampling]).reshape(SEEDS, UPDATES, LIVE)
    pairs = {
        "neighbouring updates": (held[:, 0::2], held[:, 1::2]),
        "neighbouring seeds": (held[0::2], held[1::2]),
    }
    exact = inclusion(WEIGHTS[sampling])
    expected = np.square(exact).sum()
    for kind, (one, other) in pairs.items():
        shared = (one & other).sum(axis=-1).ravel()
        # Drawing without replacement spreads the shared number less than independent inclusions would.
        variance = (np.square(exact) * (1 - np.square(exact))).sum()
        limit, count = allowed(len(pairs)), len(shared)
        slack = limit * BATCH / 3
        bound = (slack + math.sqrt(slack**2 + 2 * count * variance * limit)) / count
        assert abs(shared.mean() - expected) < bound, kind


@pytest.mark.parametrize("sampling", WEIGHTS)
def test_recorded_probabilities_make_estimates_unbiased(draws, sampling) -> None:
    """Σ x/p over a draw estimates Σ x over the buffer (Horvitz and Thompson):
    for 1, Δ and Δ², to six deviations.
    """
    rows = draws[sampling]
    for values in (np.ones(LIVE), DELTAS, DELTAS**2):
        estimates = (values[rows.trajectory_id] / rows.probability).groupby(rows["draw"]).sum()
        error = 6 * estimates.std() / math.sqrt(DRAWS)
        assert estimates.mean() == pytest.approx(values.sum(), abs=error + 1e-9)


def test_importance_weights_correct_for_the_priority_and_leave_the_decay(tmp_path) -> None:
    """With the exponent 1 and without a cap the mean of weight · x over a draw estimates Σ decay · x / Σ decay."""
    rng = np.random.default_rng(0)
    deltas, rounds = rng.exponential(size=400), np.repeat([1, 2, 3, 4], 100)
    values, aged = deltas + rounds, DECAY ** (4.0 - rounds)
    replay = Replay(
        capacity=400,
        sampling="prioritised",
        first="buffer",
        age_decay=DECAY,
        importance_exponent=(1, 1),
        importance_cap=400,
    )
    store = buffer_of(tmp_path, deltas, rounds)
    rows = draw_round(store, replay, 4, 64, 200, seed=0).to_pandas()
    store.close()

    def off(weights: pd.Series) -> float:
        """The deviation of the mean estimate from its expectation, in standard errors."""
        sums = (
            pd.DataFrame({"w": weights, "wx": weights * values[rows.trajectory_id]}).groupby(rows["update"]).sum()
        )
        means = sums.wx / sums.w
        return abs(means.mean() - aged @ values / aged.sum()) / means.std() * math.sqrt(len(means))

    print(off(rows.weight), off(1 / rows.probability), off(rows.weight**0))
    assert off(rows.weight) < 5
    assert min(off(1 / rows.probability), off(rows.weight**0)) > 10  # the test has power
