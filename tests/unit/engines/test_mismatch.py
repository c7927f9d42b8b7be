"""The trainer–engine log-prob mismatch check: what it measures and which cause it names."""

import math

import numpy as np
import pytest
import torch

from reval_core.engines.mismatch import Lag, Sample, engine_lag, likely_cause, token_gap, token_kl

SHAPE = (6, 24)


def logits(seed, spread=1.5):
    """Random logits [B, H, 40] of a policy."""
    return spread * torch.randn(*SHAPE, 40, generator=torch.Generator().manual_seed(seed))


def sample(by_engine, trainer, temperature=1.0):
    """Tokens drawn from the trainer's policy, with an engine's log-probs of them."""
    drawn = trainer.div(temperature).softmax(-1).flatten(0, 1)
    tokens = drawn.multinomial(1, generator=torch.Generator().manual_seed(9)).view(*SHAPE, 1)

    def at(logits, temperature):
        return (logits / temperature).log_softmax(-1).gather(2, tokens).squeeze(2)

    return Sample(by_engine(at), torch.ones(SHAPE, dtype=torch.bool), lambda t: at(trainer, t), temperature), at


def cause(by_engine, trainer, temperature=1.0, earlier=()):
    found, at = sample(by_engine, trainer, temperature)
    policies = [(round, lambda one=one: at(one, temperature)) for round, one in earlier]
    return likely_cause(found, policies, limit=0.05)


def test_the_gap_is_the_absolute_difference_where_both_are_known():
    trainer, engine = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -1.0, math.nan]])
    mask = torch.tensor([[True, True, False]])
    assert token_gap(trainer, engine, mask).tolist() == [[0.5, 1.0, 0.0]]
    assert token_gap(trainer, engine, ~mask).tolist() == [[0.0, 0.0, math.inf]], "NaN is not agreement"
    kl = token_kl(trainer, engine, mask)
    assert kl[0].tolist() == pytest.approx([math.exp(0.5) - 1.5, math.exp(-1.0), 0.0])


def test_the_mean_of_the_estimate_is_the_kl_divergence():
    engine, trainer = logits(1)[0, 0].log_softmax(-1), logits(2)[0, 0].log_softmax(-1)
    tokens = engine.exp().multinomial(400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimate = token_kl(trainer[tokens], engine[tokens], torch.ones(len(tokens), dtype=torch.bool))
    exact = float((engine.exp() * (engine - trainer)).sum())
    assert float(estimate.min()) >= 0
    assert float(estimate.mean()) == pytest.approx(exact, abs=4 * float(estimate.std()) / 400_000**0.5)


@pytest.mark.parametrize(("sampled", "reported"), [(0.6, 1.0), (1.0, 0.6), (0.8, 1.2)])
def test_another_temperature_is_named(sampled, reported):
    policy = logits(1)
    named = cause(lambda at: at(policy, reported), policy, sampled)
    assert named.startswith(
        f"temperature: the engine's log-probs match a temperature of {reported:g}, but rollouts.temperature is"
    )


def test_an_earlier_policys_weights_are_named_with_their_round():
    old, older, policy = logits(2), logits(3), logits(1)
    named = cause(lambda at: at(older, 1.0), policy, earlier=[(8, old), (4, older)])
    assert named == "stale weights: the engine still has the policy of round 4"


def test_weights_that_match_no_checkpoint_are_stale_too():
    named = cause(lambda at: at(logits(7), 1.0), logits(1), earlier=[(8, logits(2))])
    assert named.startswith("stale weights: the engine's weights differ")


def test_a_gap_in_the_first_tokens_is_attributed_to_the_prompts():
    policy = logits(1)

    def other_prompt(at):
        found = at(policy, 1.0).clone()
        found[:, :2] -= 3.0
        return found

    assert cause(other_prompt, policy).startswith("template: ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_log_probs_that_are_not_finite_are_attributed_to_the_dtype(value):
    policy = logits(1)

    def overflown(at):
        found = at(policy, 1.0).clone()
        found[2, 5] = value
        return found

    assert cause(overflown, policy).startswith("dtype: some log-probs are not finite")


def test_an_update_lost_in_rounding_is_attributed_to_the_dtype():
    policy, rounded = logits(1), logits(2)
    found, at = sample(lambda at: at(rounded, 1.0), policy)
    named = likely_cause(found, [(0, lambda: at(rounded, 1.0))], 0.05, lambda: at(rounded, 1.0))
    assert named.startswith("dtype: the weights lost too much precision")


def test_log_probs_that_differ_only_by_rounding_are_attributed_to_the_dtype():
    policy = logits(1)
    noise = 0.15 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    assert cause(lambda at: at(policy, 1.0) + noise, policy).startswith("dtype: ")


def lag(behind, noise=0.01, moved=0.03, tokens=3000, seed=0, rounding=0.0):
    """The lag of an engine that lacks a share `behind` (a number, or one per token) of the last round's change."""
    random = np.random.default_rng(seed)
    size = np.exp(0.5 * random.normal(size=tokens))  # unlikely tokens change more and are noisier
    policy = -random.exponential(size=tokens)
    change = moved * size * random.normal(size=tokens)
    now, before = (policy + rounding * random.normal(size=tokens) + one for one in (0, change))
    return engine_lag(policy + behind * change + noise * size * random.normal(size=tokens), now, before)


@pytest.mark.parametrize("noise", [1e-6, 0.01, 0.03])
def test_the_lag_of_an_engine_in_sync_is_zero(noise):
    for seed in range(20):
        found = lag(0, noise, seed=seed)
        assert abs(found.slope) < 5 * found.error
        assert not found.stale


@pytest.mark.parametrize("noise", [1e-6, 0.01, 0.03])
def test_the_lag_of_an_engine_with_the_previous_rounds_policy_is_one(noise):
    for seed in range(20):
        found = lag(1, noise, seed=seed)
        assert abs(found.slope - 1) < 5 * found.error
        assert found.stale


def test_an_engine_that_loaded_half_of_the_weights_lags_by_half():
    """The lag is recorded but not called stale: the engine holds no policy of this run."""
    found = lag(np.tile([0, 1], 1500))
    assert found.slope == pytest.approx(0.5, abs=5 * found.error)
    assert not found.stale
    assert lag(np.tile([0, 1, 1, 1, 1], 600)).stale


def test_the_standard_error_matches_the_spread_of_the_slope():
    found = [lag(0, noise=0.03, seed=seed) for seed in range(200)]
    scatter = np.std([one.slope for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(scatter, rel=0.25)


@pytest.mark.parametrize(
    "case",
    [
        {"moved": 0.0},
        {"moved": 1e-5},
        {"moved": 1e-5, "behind": 1},
        {"tokens": 31},
        {"noise": math.nan},
        {"noise": math.inf},
        {"moved": math.nan},
    ],
    ids=str,
)
def test_no_lag_is_reported_for_a_policy_that_changed_less_than_the_noise(case):
    assert lag(**{"behind": 0, **case}) is None


def test_no_lag_is_reported_if_a_single_token_changed():
    """A line through one point fits it without error."""
    now, before = np.zeros(1000), np.zeros(1000)
    before[0] = 1.0
    assert engine_lag(np.random.default_rng(0).normal(0, 0.01, 1000) + before, now, before) is None


@pytest.mark.parametrize(("behind", "low", "high"), [(0, 0.1, 0.5), (1, 0.5, 0.9)])
def test_the_trainers_own_rounding_moves_the_lag_towards_one_half_but_not_past_it(behind, low, high):
    found = lag(behind, noise=0.01, moved=0.01, rounding=0.02, tokens=100_000)
    assert low < found.slope < high
    assert not (behind == 0 and found.stale)


def test_a_constant_offset_of_the_engine_is_not_a_lag():
    now = -np.random.default_rng(0).exponential(size=500)
    before = now - 0.01 - 0.01 * np.random.default_rng(1).random(500)
    assert engine_lag(now - 0.02, now, before) == Lag(pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9), 500)
