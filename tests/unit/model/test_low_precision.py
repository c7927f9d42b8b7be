"""The bfloat16 copy: its bits, that updates reach it immediately, and that only the copy computes."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.bf16 import draw, seen
from benchmarks.bf16_cases import slope, token_logprobs
from reval_core.config import Grpo, Lora, Reval, Tbrm
from reval_core.config import Learner as Settings
from reval_core.engines.weights import policy_tensors
from reval_core.learning.checkpoints import restore_optimizer, save_checkpoint
from reval_core.learning.learner import Learner
from reval_core.model import low_precision as copies
from reval_core.model.loading import load_model, make_tiny_tokenizer, policy_digest
from reval_core.model.lora import add_adapters
from reval_core.model.low_precision import (
    LowPrecisionCopy,
    key_of,
    low_precision,
    round_weights,
    rounded,
    thresholds,
)
from reval_core.model.scoring import score
from reval_core.model.token_batch import Rows, collate
from tests.models import TINY, drawn, tiny_model

CPU = torch.device("cpu")


def weights(count: int = 5000) -> torch.Tensor:
    return 0.02 * torch.randn(count, generator=torch.Generator().manual_seed(3))


def test_a_weight_is_rounded_to_a_neighbour_and_the_mean_is_unbiased():
    exact = weights(200_000)
    found = low_precision(exact, 0, "a").float()
    step = torch.exp2(exact.abs().log2().floor() - 7)  # bfloat16 has 8 significant bits
    assert ((found - exact).abs() < step).all()
    deviation = float(step.square().mean() / 6) ** 0.5 / len(exact) ** 0.5  # uniform fractions: p (1 − p) is 1/6
    assert abs(float((found - exact).mean())) < 4 * deviation


def test_bfloat16_numbers_are_unchanged_under_every_seed():
    held = torch.cat([weights().bfloat16().float(), torch.tensor([0.0, -0.0, 1.0, -torch.inf])])
    for seed in range(5):
        assert torch.equal(low_precision(held, seed, "a").float(), held)


def test_the_thresholds_never_change_and_are_spread_evenly():
    found = thresholds(12345, 0, 1 << 18, CPU)
    assert found[:4].tolist() == [30196, 7153, 24318, 44603], (
        "another hash is another policy: raise LEARNER_VERSION"
    )
    assert (found.min(), found.max()) >= (0, 65_000)
    counts = torch.histc(found.double(), 16, 0, 65_536)
    assert (counts - 16_384).abs().max() < 5 * 16_384**0.5
    other = thresholds(12346, 0, 1 << 18, CPU)
    for one, two in ((found[1:], found[:-1]), (found[64:], found[:-64]), (found, other)):
        assert abs(float(np.corrcoef(one.numpy(), two.numpy())[0, 1])) < 0.01


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_the_fused_kernel_gives_the_same_bits():
    fused = torch.compile(rounded, dynamic=True)
    for count, start in ((1_000, 0), (70_001, 0), (4_096, 12_345)):
        exact, key = weights(count), key_of(3, "a")
        assert torch.equal(fused(exact, torch.tensor(key), start), rounded(exact, key, start))


def test_a_shard_has_the_bits_of_the_whole_tensor(monkeypatch):
    exact = weights()
    whole = low_precision(exact, 7, "layer.weight")
    assert torch.equal(low_precision(exact[1234:], 7, "layer.weight", start=1234), whole[1234:])
    monkeypatch.setattr(copies, "_SLICE", 100)
    assert torch.equal(low_precision(exact.view(50, 100), 7, "layer.weight"), whole.view(50, 100))


@pytest.mark.parametrize(("seed", "name"), [(8, "layer.weight"), (7, "other.weight")])
def test_another_seed_or_name_rounds_differently(seed, name):
    assert not torch.equal(low_precision(weights(), 7, "layer.weight"), low_precision(weights(), seed, name))


def test_gradients_of_several_passes_are_added_in_float32():
    model = tiny_model()
    held = LowPrecisionCopy(model, seed=0)
    batch = drawn(model)
    parts = []
    for _ in range(3):
        score(model, collate(batch.prompts, batch.responses)).log_policy.sum().backward()
        parts.append({name: master.grad.clone() for name, master in held.masters.items()})
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, once in parts[0].items():
        assert torch.equal(once, once.bfloat16().float())
        assert torch.equal(parts[2][name], once + once + once)


def test_a_learner_saves_its_masters_and_computes_with_their_copy(tmp_path):
    one = learner(tiny_model())
    batches = [drawn(tiny_model(), seed=seed) for seed in range(3)]
    start = one.content()
    one.learn(batches[:2])
    content = save_checkpoint(tmp_path / "saved", one, make_tiny_tokenizer(TINY.characters))
    loaded = load_model(tmp_path / "saved")
    assert start != content == one.content() == policy_digest(loaded)
    assert loaded.config.dtype == torch.float32
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, low_precision(loaded.state_dict()[name], 0, name))
    other = learner(loaded)
    restore_optimizer(tmp_path / "saved", other)
    one.learn(batches[2:])
    other.learn(batches[2:])
    assert one.content() == other.content() != content
    assert policy_digest(one.model) == policy_digest(other.model)


def test_the_identity_of_a_policy_depends_on_the_seed_of_its_copy():
    batch = drawn(tiny_model())
    names = {learner(tiny_model(), seed=seed).next_policy("start", [batch]) for seed in (0, 0, 1)}
    assert len(names) == 2


def learner(model: PreTrainedModel, objective=None, seed: int = 0, **settings) -> Learner:
    chosen = Settings(**({"updates": 1, "lr": 1e-3, "precision": "bfloat16"} | settings))
    return Learner(model, objective or Reval(kind="reval", beta=0.5), chosen, "start", seed=seed)


VOCABULARY = 1024


def small_model(on_grid: bool) -> PreTrainedModel:
    """A model of 1.3M weights of the magnitude found in language models; on the grid: bfloat16 numbers."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.02,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    if on_grid:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
    return model


def texts(length: int, count: int) -> tuple[Rows, Rows]:
    """Random prompts and responses."""
    rng = np.random.default_rng(0)
    prompts, responses = ([rng.integers(3, VOCABULARY, size) for _ in range(count)] for size in (4, length))
    return prompts, responses


@pytest.mark.parametrize("on_grid", [True, False], ids=["on the grid", "off the grid"])
def test_a_small_update_reaches_the_copy_completely_and_immediately(on_grid):
    """At lr 1e-6 a weight of 0.02 needs 60 aligned steps to the next bfloat16 number; autocast kept 3% of one."""
    found = seen(small_model(on_grid), *texts(length=48, count=16), draws={1: 16, 4: 6, 16: 3})
    print(found)
    for update in (1, 4, 16):
        assert 0.8 < found[f"seen_{update}"] < 1.2
        assert found[f"error_{update}"] < 0.05, "too few draws to tell"
        assert found[f"residual_{update}"] < 0.005
        assert found[f"copied_{update}"] == pytest.approx(1, abs=0.05)
    assert found["gap_16"] < 0.005
    assert found["arithmetic_16"] < 0.005


def test_with_rounding_to_nearest_a_small_update_would_be_lost(monkeypatch):
    def halves(key, start, count, device):
        return torch.full((count,), 0x7FFF, device=device)

    monkeypatch.setattr(copies, "thresholds", halves)
    found = seen(small_model(on_grid=True), *texts(length=48, count=6), draws={1: 6})
    assert found["seen_1"] < 0.3
    assert found["copied_1"] < 0.1


def test_centred_rewards_of_an_eighth_are_signal_at_a_thousand_tokens():
    """r/β is 1.25 here; the former floor on each residual was about 140."""
    model = small_model(on_grid=True)
    one = learner(model, Reval(kind="reval", beta=0.1), lr=3e-6)
    wanted_and_not = np.array([1, -1], dtype=np.float32)
    updates = one.learn([draw(small_model(on_grid=True), *texts(length=1000, count=2), wanted_and_not)] * 6)
    assert not any(update.skipped for update in updates)
    sizes = [float(np.abs(update.delta).mean()) for update in updates]
    assert sizes[0] == pytest.approx(1.25, abs=0.05)
    assert sizes[-1] < 0.6 * sizes[0], sizes


def test_the_delta_of_tbrm_keeps_its_value_term_at_a_thousand_tokens():
    """The former floor on each residual, which grew with log π(τ), treated V as noise here."""
    model = small_model(on_grid=False)
    drawn = draw(model, *texts(length=1000, count=2), np.zeros(2, dtype=np.float32))
    (update,) = learner(model, Tbrm(kind="tbrm", beta=0.1), lr=1e-6).learn([drawn])
    assert not update.skipped
    assert update.delta == pytest.approx(drawn.value_ref, abs=0.2)
    assert (drawn.value_ref > 5).all(), "V of 1,024 tokens that are as good as equal is their logarithm, 6.9"


def test_adapters_merged_for_an_engine_equal_those_of_the_learner():
    """The base is bfloat16 already: merged weights are off the grid, and rounded by the copy's thresholds."""
    model = small_model(on_grid=True)
    add_adapters(model, Lora(rank=8, alpha=16), seed=0)
    one = learner(model, Grpo(kind="grpo"), lr=1e-4)
    drawn = draw(model, *texts(length=48, count=8), np.array([1, -1] * 4, dtype=np.float32))
    batch = collate(drawn.prompts, drawn.responses)

    def by_both() -> tuple[np.ndarray, np.ndarray]:
        merged = small_model(on_grid=True)
        merged.load_state_dict(dict(policy_tensors(model, 0, torch.bfloat16)), strict=False)
        round_weights(merged, seed=1)  # bfloat16 numbers are unchanged, under any seed
        return tuple(token_logprobs(of, batch).reshape(8, -1) for of in (merged, model))

    before = by_both()
    one.learn([drawn] * 4)
    now = by_both()
    line = slope(list(zip(now[0] - before[0], now[1] - before[1], strict=True)))
    gap = float(np.abs(now[0] - now[1]).mean())
    print(line, gap)
    assert 0.9 < line.value < 1.1
    assert line.error < 0.03
    assert gap < 0.005


def test_policies_with_one_seed_share_their_rounding():
    """Rounding noise cancels between two policies: the copies of equal weights are equal bit for bit."""
    one, two = tiny_model(), tiny_model()
    round_weights(one, seed=5)
    LowPrecisionCopy(two, seed=5)
    assert policy_digest(one) == policy_digest(two)


def test_a_draw_of_noise_does_not_change_masters_off_the_bfloat16_grid():
    one = learner(tiny_model())
    draw = drawn(one.model, reward=0.0)
    before = one.content()
    (update,) = one.learn([dataclasses.replace(draw, log_ref=draw.log_ref + 1e-4)])
    assert update.skipped
    assert one.content() == before
