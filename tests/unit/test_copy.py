"""The bfloat16 copy: which bits it has, that an update is seen by it at once, and that it is all that computes."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from reval_core.batches import collate
from reval_core.checkpoints import restore_optimizer, save_checkpoint
from reval_core.config import Grpo, Reval
from reval_core.config import Learner as Settings
from reval_core.engines.weights import policy_tensors
from reval_core.learner import Drawn, Learner
from reval_core.learning import copy as copies
from reval_core.learning.copy import LowPrecisionCopy, key_of, low_precision, round_weights, rounded, thresholds
from reval_core.models import load_model, make_tiny_tokenizer, policy_digest
from reval_core.scoring import score
from tests.models import TINY, drawn, tiny_model

CPU = torch.device("cpu")


def weights(count: int = 5000) -> torch.Tensor:
    return 0.02 * torch.randn(count, generator=torch.Generator().manual_seed(3))


def test_a_weight_becomes_one_of_its_two_neighbours_and_the_mean_stays():
    exact = weights(200_000)
    found = low_precision(exact, 0, "a").float()
    step = torch.exp2(exact.abs().log2().floor() - 7)  # bfloat16 has 8 significant bits
    assert ((found - exact).abs() < step).all()
    deviation = float(step.square().mean() / 6) ** 0.5 / len(exact) ** 0.5  # uniform fractions: p (1 − p) is 1/6
    assert abs(float((found - exact).mean())) < 4 * deviation


def test_what_bfloat16_holds_is_left_alone_under_every_seed():
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


def test_a_shard_has_the_bits_that_it_has_in_the_whole(monkeypatch):
    exact = weights()
    whole = low_precision(exact, 7, "layer.weight")
    assert torch.equal(low_precision(exact[1234:], 7, "layer.weight", start=1234), whole[1234:])
    monkeypatch.setattr(copies, "_SLICE", 100)
    assert torch.equal(low_precision(exact.view(50, 100), 7, "layer.weight"), whole.view(50, 100))


@pytest.mark.parametrize(("seed", "name"), [(8, "layer.weight"), (7, "other.weight")])
def test_another_seed_or_name_rounds_otherwise(seed, name):
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


def test_a_policy_is_named_by_the_seed_of_its_copy():
    batch = drawn(tiny_model())
    names = {learner(tiny_model(), seed=seed).next_policy("start", [batch]) for seed in (0, 0, 1)}
    assert len(names) == 2


def learner(model: PreTrainedModel, objective=None, seed: int = 0, **settings) -> Learner:
    chosen = Settings(**({"updates": 1, "lr": 1e-3, "precision": "bfloat16"} | settings))
    return Learner(model, objective or Reval(kind="reval", beta=0.5), chosen, "start", seed=seed)


VOCABULARY = 1024


def small_model(on_grid: bool) -> PreTrainedModel:
    """1.3M weights of the size that language models have; on the grid, such as bfloat16 holds."""
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


def texts(model: PreTrainedModel, length: int = 160, count: int = 6) -> Drawn:
    """Long random texts, half of which are wanted and half not."""
    rng = np.random.default_rng(0)
    prompts, responses = ([rng.integers(3, VOCABULARY, size) for _ in range(count)] for size in (4, length))
    with torch.inference_mode():
        scores = score(model, collate(prompts, responses))
    logprobs = list(scores.logprobs.numpy().copy())
    sign = np.array([1, -1] * (count // 2), dtype=np.float32)
    return Drawn(
        ids=np.arange(count),
        prompts=prompts,
        responses=responses,
        written=[np.ones(length, dtype=bool)] * count,
        engine_logprobs=logprobs,
        old_logprobs=logprobs,
        truncated=np.zeros(count, dtype=bool),
        weight=np.ones(count, dtype=np.float32),
        reward=sign / 8,
        advantage=sign,
        log_ref=scores.log_policy.numpy().copy(),
        value_ref=scores.value.numpy().copy(),
        identity="texts",
    )


def slopes(on_grid: bool, updates: tuple[int, ...]) -> tuple[list[float], list[float], float]:
    """After so many updates at lr 1e-6: the slope of the copy's change of log π on the masters', over tokens, and
    the rms of what is left; at the end, the mean gap to the published weights.
    """
    model, exact = small_model(on_grid), small_model(on_grid)
    one = learner(model, Grpo(kind="grpo"), lr=1e-6)
    draw = texts(model)
    batch = collate(draw.prompts, draw.responses)

    @torch.inference_mode()
    def logprobs(of: PreTrainedModel) -> np.ndarray:
        return score(of, batch).logprobs.numpy().astype(np.float64)

    before, before_exact = logprobs(model), logprobs(exact)
    found, left = [], []
    for update in range(1, updates[-1] + 1):
        one.learn([draw])
        if update in updates:
            exact.load_state_dict(one.trained(), strict=False)
            seen, true = logprobs(model) - before, logprobs(exact) - before_exact
            found.append(float((seen * true).sum() / (true * true).sum()))
            left.append(float(np.sqrt(np.mean(np.square(seen - found[-1] * true)))))
    published = small_model(on_grid)
    published.load_state_dict(dict(policy_tensors(model, 0, torch.bfloat16)), strict=False)
    return found, left, float(np.abs(logprobs(published) - logprobs(model)).mean())


@pytest.mark.parametrize("on_grid", [True, False], ids=["on the grid", "off the grid"])
def test_a_small_update_is_seen_whole_and_at_once(on_grid):
    """At lr 1e-6 a weight of 0.02 takes 60 aligned steps to the next bfloat16 number; autocast saw 3% of one."""
    found, left, gap = slopes(on_grid, (1, 4, 16))
    print(f"slopes {found}, residual rms {left}, gap {gap:.5f}")
    assert all(0.8 < slope < 1.2 for slope in found)
    assert max(left) < 0.005
    assert gap < 0.005


def test_rounded_to_the_nearest_it_would_not_be_seen(monkeypatch):
    def halves(key, start, count, device):
        return torch.full((count,), 0x7FFF, device=device)

    monkeypatch.setattr(copies, "thresholds", halves)
    found, _, _ = slopes(True, (1,))
    assert found[0] < 0.3


def test_centred_rewards_of_an_eighth_teach_a_thousand_tokens():
    """r/β is 1.25 there, and the floor on each residual was some 140."""
    model = small_model(on_grid=True)
    one = learner(model, Reval(kind="reval", beta=0.1), lr=3e-6)
    draw = texts(model, length=1000, count=2)
    updates = one.learn([draw] * 6)
    assert not any(update.skipped for update in updates)
    sizes = [float(np.abs(update.delta).mean()) for update in updates]
    assert sizes[0] == pytest.approx(1.25, abs=0.05)
    assert sizes[-1] < 0.6 * sizes[0], sizes


def test_policies_of_one_seed_share_their_rounding():
    """The noise of rounding cancels between two policies: the copy of equal weights is equal to the bit."""
    one, two = tiny_model(), tiny_model()
    round_weights(one, seed=5)
    LowPrecisionCopy(two, seed=5)
    assert policy_digest(one) == policy_digest(two)


def test_a_draw_of_noise_leaves_masters_that_bfloat16_does_not_hold():
    one = learner(tiny_model())
    draw = drawn(one.model, reward=0.0)
    before = one.content()
    (update,) = one.learn([dataclasses.replace(draw, log_ref=draw.log_ref + 1e-4)])
    assert update.skipped
    assert one.content() == before
