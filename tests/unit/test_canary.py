"""The gap canary: what it measures, and which cause it names."""

import math

import pytest
import torch

from reval_core.canary import Sample, likely_cause, token_gap, token_kl

SHAPE = (6, 24)


def logits(seed, spread=1.5):
    """Random logits [B, H, 40] of a policy."""
    return spread * torch.randn(*SHAPE, 40, generator=torch.Generator().manual_seed(seed))


def sample(by_engine, trainer, temperature=1.0):
    """Tokens drawn from the trainer's policy, with what an engine says of them."""
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
    assert token_gap(trainer, engine, ~mask).tolist() == [[0.0, 0.0, math.inf]], "no number is no agreement"
    kl = token_kl(trainer, engine, mask)
    assert kl[0].tolist() == pytest.approx([math.exp(0.5) - 1.5, math.exp(-1.0), 0.0])


def test_the_estimate_is_the_kl_divergence_in_the_mean():
    engine, trainer = logits(1)[0, 0].log_softmax(-1), logits(2)[0, 0].log_softmax(-1)
    tokens = engine.exp().multinomial(400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimate = token_kl(trainer[tokens], engine[tokens], torch.ones(len(tokens), dtype=torch.bool))
    exact = float((engine.exp() * (engine - trainer)).sum())
    assert float(estimate.min()) >= 0
    assert float(estimate.mean()) == pytest.approx(exact, abs=4 * float(estimate.std()) / 400_000**0.5)


@pytest.mark.parametrize(("sampled", "reported"), [(0.6, 1.0), (1.0, 0.6), (0.8, 1.2)])
def test_another_temperature_is_named(sampled, reported):
    policy = logits(1)
    said = cause(lambda at: at(policy, reported), policy, sampled)
    assert said.startswith(
        f"temperature: the engine's figures are those at {reported:g}, and rollouts.temperature is"
    )


def test_an_earlier_policys_weights_are_named_with_their_round():
    old, older, policy = logits(2), logits(3), logits(1)
    said = cause(lambda at: at(older, 1.0), policy, earlier=[(8, old), (4, older)])
    assert said == "stale weights: the engine still has the policy of round 4"


def test_weights_that_no_checkpoint_has_are_stale_too():
    said = cause(lambda at: at(logits(7), 1.0), logits(1), earlier=[(8, logits(2))])
    assert said.startswith("stale weights: the engine generates with other weights")


def test_a_gap_in_the_first_tokens_is_the_prompts():
    policy = logits(1)

    def other_prompt(at):
        found = at(policy, 1.0).clone()
        found[:, :2] -= 3.0
        return found

    assert cause(other_prompt, policy).startswith("template: ")


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_figures_that_are_no_numbers_are_the_dtype(figure):
    policy = logits(1)

    def overflown(at):
        found = at(policy, 1.0).clone()
        found[2, 5] = figure
        return found

    assert cause(overflown, policy).startswith("dtype: some figures are no numbers")


def test_weights_that_lost_an_update_in_rounding_are_the_dtype():
    policy, rounded = logits(1), logits(2)
    found, at = sample(lambda at: at(rounded, 1.0), policy)
    said = likely_cause(found, [(0, lambda: at(rounded, 1.0))], 0.05, lambda: at(rounded, 1.0))
    assert said.startswith("dtype: the weights lost too much")


def test_figures_that_agree_but_for_rounding_are_the_dtype():
    policy = logits(1)
    noise = 0.15 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    assert cause(lambda at: at(policy, 1.0) + noise, policy).startswith("dtype: ")
