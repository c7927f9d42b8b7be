"""The transformers engine: its tokens follow the policy and depend only on weights, prompts and seeds."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from reval_core.engines.engine import Sampling
from reval_core.engines.transformers import TransformersEngine
from reval_core.model.scoring import score
from reval_core.model.token_batch import collate
from tests.models import random_rows, tiny_model
from tests.responses import request

EOS, PAD = 2, 0
STOPS = (EOS,)


@pytest.fixture
def engine():
    engine = TransformersEngine(PAD)
    engine.load(tiny_model(), "any")
    return engine


def requests(prompts, first_seed=0):
    return [request(prompt.tolist(), first_seed + place) for place, prompt in enumerate(prompts)]


def answers(engine, wanted, sampling):
    found = dict(engine.generate(wanted, sampling))
    return [found[place] for place in range(len(wanted))]


def test_the_log_probs_equal_the_trainers(engine):
    prompts = random_rows(12, 1, 6)
    for temperature in (1.0, 0.6):
        found = answers(engine, requests(prompts), Sampling(temperature, 6, STOPS))
        with torch.inference_mode():
            batch = collate(prompts, [np.array(one.tokens) for one in found])
            scores = score(tiny_model(), batch, temperature)
        for row, one in enumerate(found):
            np.testing.assert_allclose(one.logprobs, scores.logprobs[row, : len(one.tokens)], atol=2e-5)


def test_tokens_are_drawn_from_the_policy(engine):
    """4,000 first tokens against the model's distribution, each within four standard deviations."""
    prompt, count = [5, 6, 7], 4000
    found = answers(engine, [request(prompt, seed) for seed in range(count)], Sampling(1.0, 1, STOPS))
    shares = np.bincount([one.tokens[0] for one in found], minlength=18) / count
    with torch.inference_mode():
        expected = tiny_model()(torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()
    assert np.all(np.abs(shares - expected) <= 4 * np.sqrt(expected * (1 - expected) / count) + 1e-9)


def test_the_same_batch_gives_the_same_responses_and_other_seeds_give_others(engine):
    prompts = random_rows(8, 2, 5)
    one, again, other = (answers(engine, requests(prompts, seed), Sampling(1.0, 6, STOPS)) for seed in (0, 0, 100))
    assert one == again
    assert one != other


def test_a_response_does_not_depend_on_its_neighbours(engine):
    prompts = random_rows(8, 2, 5)
    together = answers(engine, requests(prompts), Sampling(1.0, 6, STOPS))
    alone = [answers(engine, [request], Sampling(1.0, 6, STOPS))[0] for request in requests(prompts)]
    assert [one.tokens for one in alone] == [one.tokens for one in together]


def test_a_response_ends_with_its_end_of_sequence_token_or_at_the_limit(engine):
    found = answers(engine, requests(random_rows(200, 2, 5)), Sampling(1.0, 12, STOPS))
    assert {one.finish_reason for one in found} == {"stop", "length"}
    for one in found:
        assert len(one.tokens) == len(one.logprobs)
        assert EOS not in one.tokens[:-1]
        assert (one.tokens[-1] == EOS) == (one.finish_reason == "stop")
        assert one.finish_reason == "stop" or len(one.tokens) == 12


def test_the_models_own_generation_defaults_do_not_change_the_policy():
    model = tiny_model()
    plain, biased = TransformersEngine(PAD), TransformersEngine(PAD)
    plain.load(model, "any")
    expected = answers(plain, requests(random_rows(6, 2, 5)), Sampling(1.0, 6, STOPS))
    model.generation_config = GenerationConfig(repetition_penalty=5.0, top_k=1, temperature=0.1)
    biased.load(model, "any")
    assert answers(biased, requests(random_rows(6, 2, 5)), Sampling(1.0, 6, STOPS)) == expected
    assert model.generation_config.repetition_penalty == 5.0


def test_no_global_random_state_is_touched(engine):
    before = torch.get_rng_state()
    answers(engine, requests(random_rows(4, 2, 5)), Sampling(1.0, 4, STOPS))
    assert torch.equal(before, torch.get_rng_state())
