"""The sliced head compared with a softmax over whole logits, and model families that transform their logits."""

from functools import partial

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.config import Learner
from reval_core.errors import InputError
from reval_core.model import lm_head as heads
from reval_core.model.lm_head import Head, Tile, token_scores
from reval_core.model.scoring_check import check_scoring
from tests.models import tiny_model


def dense(head: Head, states, actions, temperature=1.0):
    """log π, V and the entropy from whole logits."""
    logits = head.scale * (states @ head.weight.T + (0 if head.bias is None else head.bias))
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logits = logits / temperature
    logprobs = logits.log_softmax(dim=1)
    chosen = logprobs.gather(1, actions.unsqueeze(1)).squeeze(1)
    return chosen, logits.logsumexp(dim=1), -(logprobs.exp() * logprobs).sum(dim=1)


def random_head(seed, rows=5, width=4, vocabulary=11, bias=True, scale=1.0, softcap=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    head = Head(normal(vocabulary, width), normal(vocabulary) if bias else None, scale, softcap)
    return head, normal(rows, width), torch.randint(0, vocabulary, (rows,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 13),
    st.booleans(),
    st.sampled_from([1.0, 0.25]),
    st.sampled_from([None, 2.0]),
    st.sampled_from([1.0, 0.6]),
)
def test_scores_and_gradients_equal_those_of_whole_logits(seed, size, bias, scale, softcap, temperature):
    head, states, actions = random_head(seed, bias=bias, scale=scale, softcap=softcap)
    leaves = [one for one in (states, head.weight, head.bias) if one is not None]
    mixed = torch.randn(2, len(actions), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def gradients(found):
        return torch.autograd.grad((mixed[0] * found[0] + mixed[1] * found[1]).sum(), leaves)

    expected = dense(head, states, actions, temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(heads.TILES, "cpu", Tile(size, 3 * size))
        found = token_scores(head, states, actions, temperature, entropy=True)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        for one, other in zip(gradients(found), gradients(expected), strict=True):
            torch.testing.assert_close(one, other)


@pytest.fixture
def compiled(monkeypatch):
    """The head traced as on a GPU, in blocks of 3 states; for a backend of torch.compile if called with one."""
    fused, compile_ = heads._fused, torch.compile

    def compile_with(backend):
        monkeypatch.setattr(torch, "compile", partial(compile_, backend=backend))

    monkeypatch.setattr(heads, "FUSED_ON", {"cpu"})
    monkeypatch.setitem(heads.TILES, "cpu", Tile(4, 12))
    compile_with("eager")
    fused.cache_clear()
    yield compile_with
    fused.cache_clear()


def agreement(head, states, actions, temperature):
    """Scores and gradients, paired with those of whole logits."""
    leaves = [one for one in (states, head.weight, head.bias) if one is not None]
    pairs = []
    for found in (
        token_scores(head, states, actions, temperature, entropy=True),
        dense(head, states, actions, temperature),
    ):
        pulled = (found[0] * torch.arange(len(actions)) + found[1]).sum()
        pairs.append([*found, *torch.autograd.grad(pulled, leaves)])
    return list(zip(*pairs, strict=True))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_compiled_operations_equal_whole_logits(bias, softcap, compiled):
    graphs = []
    compiled(lambda graph, inputs: graphs.append(graph) or graph.forward)
    head, states, actions = random_head(0, bias=bias, scale=0.5, softcap=softcap)
    for one, other in agreement(head, states, actions, 0.6):
        torch.testing.assert_close(one, other)
    assert len(graphs) >= 2  # forward and backward


def test_a_head_that_cannot_be_compiled_warns_and_is_correct(compiled, caplog):
    def refuse(graph, inputs):
        raise RuntimeError("Failed to find C compiler.")

    compiled(refuse)
    for one, other in agreement(*random_head(0), 1.0):
        torch.testing.assert_close(one, other)
    assert "are not compiled, which is slower: Failed to find C compiler." in caplog.text


def test_a_frozen_head_gets_no_gradient():
    head, states, actions = random_head(0)
    frozen = Head(head.weight.detach())
    token_scores(frozen, states, actions).logprobs.sum().backward()
    assert states.grad is not None
    assert frozen.weight.grad is None


def test_logits_of_any_size_neither_overflow_nor_vanish():
    head, states, actions = random_head(1, bias=False, scale=1e4)
    found, expected = token_scores(head, states, actions, entropy=True), dense(head, states, actions)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_logits_stay_float32_under_autocast():
    head, states, actions = random_head(2, width=64, vocabulary=500, dtype=torch.float32)
    expected = token_scores(head, states, actions, entropy=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_scores(head, states, actions, entropy=True)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_bfloat16_states_and_weights_are_scored_in_float32():
    head, states, actions = random_head(3, width=64, vocabulary=500, bias=False, dtype=torch.float32)
    half = Head(head.weight.detach().bfloat16().requires_grad_())
    rounded = states.detach().bfloat16()
    found = token_scores(half, rounded, actions)
    expected = dense(Head(half.weight.float()), rounded.float(), actions)
    torch.testing.assert_close(found.logprobs, expected[0], rtol=1e-5, atol=1e-5)
    found.logprobs.sum().backward()
    assert half.weight.grad.dtype == torch.bfloat16
    exact = half.weight.detach().float().requires_grad_()
    dense(Head(exact), rounded.float(), actions)[0].sum().backward()
    assert (half.weight.grad.float() - exact.grad).norm() <= 1e-2 * exact.grad.norm()


SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "tied": (transformers.Qwen3Config, {"tie_word_embeddings": True}),
    "untied": (transformers.Qwen3Config, {"tie_word_embeddings": False}),
    "soft cap": (transformers.Gemma2Config, {"final_logit_softcapping": 0.5, "attn_logit_softcapping": None}),
    "logits multiplied": (transformers.CohereConfig, {"logit_scale": 0.0625}),
    "logits divided": (transformers.GraniteConfig, {"logits_scaling": 8.0}),
    "bias": (transformers.PhiConfig, {}),
    "learned positions": (transformers.GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2}),
}


def family(name):
    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**(SMALL | settings))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from uniform that a cap or a bias matters
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_scores_of_a_model_family_equal_its_own(name, packed, precision):
    check_scoring(family(name), Learner(updates=1, lr=1.0, packed=packed, precision=precision))


def test_the_tied_and_the_untied_model_are_tied_and_untied():
    tied, untied = family("tied"), family("untied")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bfloat16"])
UNKNOWN = {
    "scaled": lambda module, inputs, output: output * 1.05,
    "capped": lambda module, inputs, output: 4 * torch.tanh(output / 4),
    "shifted": lambda module, inputs, output: output + torch.linspace(0, 0.5, output.shape[-1]),
}


@PRECISIONS
@pytest.mark.parametrize("bend", UNKNOWN)
def test_a_model_with_an_unknown_logit_transform_is_refused_in_either_precision(bend, precision):
    model = tiny_model()
    model.lm_head.register_forward_hook(UNKNOWN[bend])
    with pytest.raises(InputError, match="computes its logits in a way that reval does not know"):
        check_scoring(model, Learner(updates=1, lr=1.0, precision=precision))


@PRECISIONS
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_large_logits_are_no_reason_to_refuse_a_model(precision, packed):
    """Rounded to bfloat16, logits of 60 give log-probabilities that are off by 0.15."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    check_scoring(model, Learner(updates=1, lr=1.0, precision=precision, packed=packed))


@PRECISIONS
def test_a_model_that_attends_to_later_tokens_is_refused(precision):
    model = tiny_model()
    model.model.norm.register_forward_hook(lambda module, inputs, output: output + output.mean(1, keepdim=True))
    with pytest.raises(InputError, match="is not a causal language model: later tokens change"):
        check_scoring(model, Learner(updates=1, lr=1.0, precision=precision))


def test_a_model_that_computes_nan_is_refused():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(InputError, match="computes NaN as log-probabilities"):
        check_scoring(model, Learner(updates=1, lr=1.0))


def test_a_model_in_which_packed_trajectories_attend_to_each_other_is_refused():
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 40, "pad_token_id": 0}
    recurrent = transformers.AutoModelForCausalLM.from_config(transformers.MambaConfig(**settings)).eval()
    with torch.no_grad():
        recurrent.lm_head.weight.normal_()
    with pytest.raises(InputError, match=r"learner\.packed: false"):
        check_scoring(recurrent, Learner(updates=1, lr=1.0, packed=True))


def test_a_model_whose_layers_apply_dropout_themselves_is_refused_with_checkpointing():
    torch.manual_seed(0)
    settings = {
        "vocab_size": 40,
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.OPTConfig(**settings, word_embed_proj_dim=16, dropout=0.5, pad_token_id=0)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    check_scoring(model, Learner(updates=1, lr=1.0))
    with pytest.raises(InputError, match=r"learner\.gradient_checkpointing: false"):
        check_scoring(model, Learner(updates=1, lr=1.0, gradient_checkpointing=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_on_a_gpu_scores_and_gradients_equal_those_of_whole_logits(rounded):
    head, states, actions = random_head(4, rows=300, width=64, vocabulary=5000, bias=False, dtype=torch.float32)
    expected = dense(head, states, actions)
    wanted = torch.autograd.grad((expected[0] + expected[1]).sum(), [states, head.weight])
    weight, inputs = (one.detach().cuda().requires_grad_() for one in (head.weight, states))
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=rounded):
        found = token_scores(Head(weight), inputs, actions.cuda())
    given = torch.autograd.grad((found.logprobs + found.values).sum(), [inputs, weight])
    near = 3e-2 if rounded else 1e-3
    for one, other in zip([*found[:2], *given], [*expected[:2], *wanted], strict=True):
        assert (one.cpu() - other).norm() <= near * other.norm()
