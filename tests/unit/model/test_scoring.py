"""Scoring compared with the direct computation on whole logits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.model import lm_head
from reval_core.model.scoring import score
from reval_core.model.token_batch import collate, micro_batches
from tests.models import random_rows, tiny_model


def dense(model, prompt, response, temperature=1.0):
    """Log-probs, values and entropies of one response from the logits of the whole sequence."""
    tokens = torch.tensor([[*prompt, *response]])
    logits = model(tokens).logits[0, len(prompt) - 1 : -1].float() / temperature
    logprobs = logits.log_softmax(-1)
    chosen = logprobs[torch.arange(len(response)), torch.tensor(response)]
    return chosen, logits.logsumexp(-1), -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_equal_those_of_whole_logits(temperature):
    model, prompts, responses = tiny_model(), random_rows(6, 1, 5), random_rows(6, 1, 7, seed=1)
    with torch.no_grad():
        scores = score(model, collate(prompts, responses), temperature, entropy=True)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            for found, expected in zip(scores, dense(model, prompt, response, temperature), strict=True):
                torch.testing.assert_close(found[row, : len(response)], expected, rtol=1e-5, atol=1e-5)
                assert not found[row, len(response) :].any()


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_size_of_a_slice_changes_neither_scores_nor_gradients(size, monkeypatch):
    model = tiny_model()
    batch = collate(random_rows(5, 1, 5), random_rows(5, 2, 6, seed=1))

    def run():
        model.zero_grad()
        scores = score(model, batch)
        (scores.log_policy.square().sum() + scores.value.sum()).backward()
        return scores.logprobs.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    expected, expected_gradients = run()
    monkeypatch.setitem(lm_head.TILES, "cpu", lm_head.Tile(size, 2 * size))
    found, gradients = run()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_padding_does_not_change_a_score():
    model, prompts, responses = tiny_model(), random_rows(4, 2, 4), random_rows(4, 2, 4, seed=1)
    long = random_rows(1, 20, 20, seed=2)
    with torch.no_grad():
        alone = score(model, collate(prompts, responses))
        padded = score(model, collate([*prompts, *long], [*responses, *long]))
    torch.testing.assert_close(padded.log_policy[:4], alone.log_policy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded.value[:4], alone.value, rtol=1e-5, atol=1e-5)


def test_a_token_that_the_policy_did_not_write_has_no_log_probability():
    model, prompts, responses = tiny_model(), random_rows(1, 3, 3), random_rows(1, 4, 4, seed=1)
    written = [np.array([True, False, True, True])]
    with torch.no_grad():
        scores = score(model, collate(prompts, responses, written))
        whole = score(model, collate(prompts, responses))
    assert scores.logprobs[0, 1] == 0
    assert scores.logprobs[0, 2] == whole.logprobs[0, 2]
    assert scores.values[0, 1] == whole.values[0, 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200), st.booleans())
def test_micro_batches_hold_every_row_once_within_the_limit(lengths, budget, packed):
    groups = list(micro_batches(lengths, budget, packed))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        chosen = [lengths[row] for row in group]
        assert len(group) == 1 or (sum(chosen) if packed else max(chosen) * len(chosen)) <= budget
