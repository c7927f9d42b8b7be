"""Attention without masks for padded and packed rows, unchanged generation, and compiled layers."""

import copy
import functools
import re
import shutil
from contextlib import nullcontext

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from reval_core.config import Learner, Reval
from reval_core.engines.engine import Sampling
from reval_core.engines.transformers import TransformersEngine
from reval_core.errors import InputError
from reval_core.learning.learner import Learner as Trainer
from reval_core.model.compiled import compile_layers
from reval_core.model.layers import as_loaded, checkpointed_layers, decoder_layers, set_up
from reval_core.model.packed import check_packed, read_packed_rows
from reval_core.model.scoring import score
from reval_core.model.scoring_check import check_scoring
from reval_core.model.token_batch import collate
from tests.models import VOCABULARY, random_rows, tiny_model
from tests.responses import request

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "grouped heads": (transformers.Qwen3Config, {}),
    "a window": (transformers.MistralConfig, {"sliding_window": 4}),
    "a window in every other layer": (transformers.Gemma3TextConfig, {"sliding_window": 4, "num_hidden_layers": 6}),
    "experts": (transformers.Qwen3MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2}),
    "learned positions": (transformers.GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2}),
}
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def family(name, attention="sdpa"):
    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**(SMALL | settings)), attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def trajectories():
    return random_rows(5, 2, 6), random_rows(5, 3, 12, seed=1)


def scored(model, batch):
    """Log-probs and values, and the gradient of a function of both, flattened."""
    model.zero_grad()
    scores = score(model, batch)
    (scores.log_policy.square().mean() + scores.value.sum()).backward()
    gradient = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
    return scores.logprobs.detach(), scores.values.detach(), gradient


def assert_same(found, expected):
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert (found[2] - expected[2]).norm() <= 1e-5 * expected[2].norm()


def masks_seen(model, batch):
    """The attention masks that the layers receive."""
    seen = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs.get("attention_mask")), with_kwargs=True
        )
        for layer in decoder_layers(model)
    ]
    with torch.no_grad():
        score(model, batch)
    for hook in hooks:
        hook.remove()
    return seen


@ATTENTION
@pytest.mark.parametrize("name", FAMILIES)
def test_padding_on_the_right_needs_no_mask(name, attention):
    model, batch = family(name, attention), collate(*trajectories())
    without = scored(model, batch)
    lengths = torch.tensor([len(p) + len(r) for p, r in zip(*trajectories(), strict=True)])
    mask = (torch.arange(batch.tokens.shape[1]) < lengths[:, None]).long()
    assert not mask.all()
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
    )
    assert_same(without, scored(model, batch))


def test_padded_rows_get_no_mask():
    assert masks_seen(family("grouped heads"), collate(*trajectories())) == [None, None]


@ATTENTION
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_get_the_scores_of_padded_rows_without_a_mask(name, checkpointed, attention):
    model = family(name, attention)
    expected = scored(model, collate(*trajectories()))
    packed = collate(*trajectories(), packed=True)
    read_packed_rows(model)
    assert not any(mask is not None for mask in masks_seen(model, packed))
    if checkpointed:
        with checkpointed_layers(model):
            assert_same(scored(model, packed), expected)
    else:
        assert_same(scored(model, packed), expected)
    assert_same(scored(model, collate(*trajectories())), expected)


def test_a_learner_prepares_its_model():
    model = tiny_model()
    one = Trainer(
        model, Reval(kind="reval", beta=0.1), Learner(updates=1, lr=1.0, packed=True, compile=True), "start"
    )
    assert model.config._attn_implementation == "packed|sdpa"
    assert all(layer._compiled_call_impl for layer in decoder_layers(model))
    plain = Trainer(tiny_model(), Reval(kind="reval", beta=0.1), Learner(updates=1, lr=1.0), "start")
    assert not any(layer._compiled_call_impl for layer in decoder_layers(plain.model))
    assert one.next_policy("start", []) != plain.next_policy("start", [])


def test_a_model_that_reads_packed_rows_generates_as_before():
    model, requests = (
        tiny_model(),
        [request(tuple(row.tolist()), seed) for seed, row in enumerate(random_rows(4, 2, 6))],
    )
    sampling = Sampling(temperature=1.0, max_tokens=6, stop_ids=(2,))

    def generated():
        engine = TransformersEngine(pad_token_id=0)
        engine.load(model, "policy")
        return dict(engine.generate(requests, sampling))

    expected = generated()
    read_packed_rows(model)
    assert generated() == expected
    assert model.config._attn_implementation == "packed|sdpa"


@pytest.mark.parametrize(
    ("kind", "settings", "by_architecture", "by_its_call"),
    [
        (
            transformers.Gemma2Config,
            {},
            "caps its attention logits (attn_logit_softcapping: 50.0)",
            "uses softcap",
        ),
        (transformers.GptOssConfig, {"num_local_experts": 2}, "has attention sinks", "uses s_aux"),
    ],
)
def test_attention_that_packed_rows_do_not_support_is_refused(kind, settings, by_architecture, by_its_call):
    model = AutoModelForCausalLM.from_config(kind(**(SMALL | settings))).eval()
    with pytest.raises(InputError, match=re.escape(by_architecture) + r".*; set learner\.packed: false"):
        check_packed(model)
    with pytest.raises(InputError, match=rf"learner\.packed: .* {by_its_call}, .*; set learner\.packed: false"):
        check_scoring(model, Learner(updates=1, lr=1.0, packed=True))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU by g++")
def test_compiled_layers_score_and_learn_like_uncompiled_ones():
    model, batch = tiny_model(), collate(*trajectories())
    expected = scored(model, batch)
    compile_layers(decoder_layers(model))
    assert_same(scored(model, batch), expected)


def test_layers_have_one_graph_for_single_rows_and_one_for_all_other_shapes(monkeypatch):
    """The same graphs with and without gradients, and for checkpointed layers."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # without g++
    torch._dynamo.reset()
    counts, plain = torch._dynamo.utils.counters["stats"], tiny_model()
    model = copy.deepcopy(plain)
    set_up(model, packed=False, compiled=True)
    before = counts["unique_graphs"]
    for rows in (5, 1, 3, 1):
        batch = collate(random_rows(rows, 2, 4), random_rows(rows, 3, 4 + rows, seed=1))
        expected = scored(plain, batch)
        for around in (nullcontext(), checkpointed_layers(model)):
            with around:
                assert_same(scored(model, batch), expected)
        with torch.no_grad():
            torch.testing.assert_close(score(model, batch).logprobs, expected[0], rtol=1e-5, atol=1e-5)
    assert counts["unique_graphs"] - before == 2
    with as_loaded(model):
        scored(model, collate(*trajectories()))
    assert counts["unique_graphs"] - before == 2
    packed, padded = collate(*trajectories(), packed=True), collate(*trajectories())
    assert_same(scored(model, packed), scored(plain, padded))
    with torch.inference_mode():
        torch.testing.assert_close(
            score(model, padded).logprobs, score(plain, padded).logprobs, rtol=1e-5, atol=1e-5
        )
