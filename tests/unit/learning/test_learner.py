"""The learner: results do not depend on micro-batches, identities are reliable, and noise causes no steps."""

import copy
import dataclasses
import os

import numpy as np
import pytest
import torch

from reval_core.config import CustomObjective, Grpo, Lora, Regression, Reval, Tbrm
from reval_core.config import Learner as Settings
from reval_core.errors import CorruptData, InputError, RunStopped
from reval_core.learning.checkpoints import (
    checkpoint_state,
    restore_optimizer,
    retained_checkpoints,
    save_checkpoint,
)
from reval_core.learning.learner import Learner, learning_rate
from reval_core.learning.update import Drawn
from reval_core.model.loading import load_model, make_tiny_tokenizer, policy_digest
from reval_core.model.lora import add_adapters
from reval_core.model.noise import LEAST, is_noise, measure
from reval_core.model.scoring import Scores, score
from reval_core.model.token_batch import collate
from reval_core.objectives import make_objective
from reval_core.storage.tables import Manifest
from tests.models import TINY, drawn, scores_in_updates, tiny_model
from tests.runs import small_config

OBJECTIVES = [
    Reval(kind="reval", beta=0.5),
    Tbrm(kind="tbrm", beta=0.5),
    Regression(kind="regression", beta=0.5),
    Grpo(kind="grpo"),
    Grpo(kind="grpo", mean="token"),
    Reval(kind="reval", beta=0.5, huber=0.5, length_normalised=True),
]


def learner(model=None, objective=OBJECTIVES[0], **settings) -> Learner:
    chosen = Settings(**({"updates": 1, "lr": 1e-3} | settings))
    return Learner(model or tiny_model(), objective, chosen, "start")


def gradients(one: Learner, batch: Drawn) -> list[torch.Tensor]:
    """The gradient that an update applies."""
    seen: list[torch.Tensor] = []

    def look(optimizer, *_):
        seen.extend(parameter.grad.clone() for parameter in one.weights.masters.values())

    one.optimizer.register_step_pre_hook(look)
    (one.update,) = one.learn([batch])
    return seen


def test_updates_are_reported_in_the_order_of_the_draw():
    model = tiny_model()
    batch = drawn(model, count=9)
    (update,) = learner(copy.deepcopy(model), micro_batch_tokens=20).learn([batch])
    np.testing.assert_allclose(update.delta, -batch.reward / 0.5, atol=1e-5)


def test_the_loss_falls_over_updates():
    model = tiny_model()
    one, batch = learner(model, updates=30, lr=3e-3), drawn(model)
    losses = [update.loss for update in one.learn([batch] * 30)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_identity_of_a_policy_depends_on_its_draws():
    model = tiny_model()
    batches = [drawn(model, seed=0), drawn(model, seed=1)]
    one, same, other, slower = (
        learner(copy.deepcopy(model)),
        learner(copy.deepcopy(model)),
        learner(copy.deepcopy(model)),
        learner(copy.deepcopy(model), lr=1e-4),
    )
    one.learn(batches)
    assert one.policy == same.next_policy("start", batches)
    same.learn(batches)
    assert (same.policy, policy_digest(same.model)) == (one.policy, policy_digest(one.model))
    assert other.next_policy("start", batches[::-1]) != one.policy
    assert slower.next_policy("start", batches) != one.policy


def test_adam_eps_reaches_adamw_and_only_a_changed_value_changes_the_identity():
    model = tiny_model()
    usual, given, larger = (
        learner(copy.deepcopy(model), **changes) for changes in ({}, {"adam_eps": 1e-8}, {"adam_eps": 1e-3})
    )
    batch = drawn(model)
    assert [one.optimizer.param_groups[0]["eps"] for one in (usual, given, larger)] == [1e-8, 1e-8, 1e-3]
    names = [one.next_policy("start", [batch]) for one in (usual, given, larger)]
    assert names[0] == names[1] != names[2]
    assert "adam_eps" not in Settings(updates=1, lr=1e-3).model_dump()  # older configs do not have it


def test_interrupted_weights_have_no_identity():
    model = tiny_model()
    one = learner(model)
    broken = drawn(model, seed=1)
    broken.log_ref[3] = np.nan
    with pytest.raises(RunStopped, match=r"not finite for trajectories \[3\]"):
        one.learn([drawn(model), broken])
    assert one.policy is None


def test_the_learning_rate_warms_up_over_the_updates_of_all_rounds():
    model = tiny_model()
    one = learner(model, lr=1e-3, warmup_updates=3)
    rates = [update.lr for update in one.learn([drawn(model)] * 2) + one.learn([drawn(model)] * 3)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize("rounds_before", [0, 2])
def test_a_restored_learner_continues_bit_for_bit(tmp_path, rounds_before):
    model, tokenizer = tiny_model(), make_tiny_tokenizer(TINY.characters)
    batches = [drawn(model, seed=seed) for seed in range(5)]
    one = learner(model)
    if rounds_before:
        one.learn(batches[:rounds_before])
    content = save_checkpoint(tmp_path / "saved", one, tokenizer)
    assert content == policy_digest(one.model) == checkpoint_state(tmp_path / "saved")["content"]
    other = learner(load_model(tmp_path / "saved"))
    restore_optimizer(tmp_path / "saved", other)
    one.learn(batches[rounds_before:])
    other.learn(batches[rounds_before:])
    assert policy_digest(one.model) == policy_digest(other.model)
    assert (one.policy, one.updates_done) == (other.policy, other.updates_done)


def test_weights_changed_on_disk_are_refused(tmp_path):
    one = learner()
    save_checkpoint(tmp_path / "saved", one, make_tiny_tokenizer(TINY.characters))
    path = tmp_path / "saved" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptData, match="not those that were saved"):
        restore_optimizer(tmp_path / "saved", learner(load_model(tmp_path / "saved")))


def test_which_checkpoints_are_kept():
    def manifest(stage, round, **info):
        return Manifest(stage, round, key="", info=info)

    evaluations = [manifest("evaluation", round, accuracy=0.9 - abs(round - 4) / 10) for round in (0, 2, 4, 6)]
    manifests = [*evaluations, *(manifest("checkpoint", round) for round in (2, 3, 4, 6, 8, 9))]
    assert retained_checkpoints(manifests, small_config(checkpoints__keep=2)) == {0, 4, 8, 9}
    resetting = small_config(checkpoints__keep=1, reference__reset_every=3)
    assert retained_checkpoints(manifests, resetting) == {0, 4, 9}
    assert retained_checkpoints(manifests[:-1], resetting) == {0, 4, 6, 8}
    assert retained_checkpoints([], resetting) == {0}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
def test_neither_micro_batches_nor_packing_change_the_loss_or_the_gradient(objective):
    batch = drawn(tiny_model(), count=12)
    batch = dataclasses.replace(batch, log_ref=batch.log_ref + 0.3)
    ways = [{"micro_batch_tokens": 10_000}, {"micro_batch_tokens": 30}, {"micro_batch_tokens": 1}]
    ways += [{"packed": True}, {"packed": True, "micro_batch_tokens": 30}, {"gradient_checkpointing": True}]
    # In float64, since float32 rounding differs between processors.
    whole, *others = (learner(tiny_model().double(), objective, grad_clip=1e9, **way) for way in ways)
    expected = gradients(whole, batch)
    for other in others:
        for one, two in zip(expected, gradients(other, batch), strict=True):
            assert (one - two).norm() <= 1e-5 * one.norm() + 1e-9
        assert other.update.loss == pytest.approx(whole.update.loss, rel=1e-5, abs=1e-6)
        assert other.update.metrics == pytest.approx(whole.update.metrics, rel=1e-4, abs=1e-6)
        np.testing.assert_allclose(other.update.delta, whole.update.delta, rtol=1e-4, atol=1e-5)


def test_an_update_is_the_mean_over_single_trajectories():
    batch = drawn(tiny_model(), count=5)
    batch = dataclasses.replace(batch, log_ref=batch.log_ref + 0.3)
    together = gradients(learner(grad_clip=1e9), batch)
    alone = [gradients(learner(grad_clip=1e9), pick(batch, [row])) for row in range(5)]
    for whole, *parts in zip(together, *alone, strict=True):
        assert (whole - sum(parts) / 5).norm() <= 1e-5 * whole.norm() + 1e-9


def pick(batch: Drawn, rows: list[int]) -> Drawn:
    """Some trajectories of a draw."""
    columns = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
    chosen = {
        name: column
        if name in ("identity", "noise")
        else column[rows]
        if isinstance(column, np.ndarray)
        else [column[r] for r in rows]
        for name, column in columns.items()
    }
    return Drawn(**chosen)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
def test_weight_gradients_equal_those_of_dense_logits_in_float64(objective):
    model = tiny_model().double()
    batch = drawn(model, count=6)
    batch = dataclasses.replace(batch, log_ref=batch.log_ref + 0.3)
    one = learner(model, objective, grad_clip=1e12, lr=1e-12)
    found = gradients(one, batch)
    dense = tiny_model().double()
    losses = []
    for row in range(6):
        prompt, response = torch.from_numpy(batch.prompts[row]), torch.from_numpy(batch.responses[row])
        logits = dense(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(dim=1).gather(1, response[:, None]).T
        scores = Scores(logprobs, logits.logsumexp(dim=1)[None], None)
        losses.append(make_objective(**objective.model_dump())(one._inputs(batch, [row], scores)).loss)
    expected = torch.autograd.grad(torch.cat(losses).mean(), list(dense.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        # The model's own norm layers compute in float32.
        assert (ours - theirs).norm() <= 1e-7 * theirs.norm() + 1e-10


def test_bfloat16_updates_are_close_to_float32_updates():
    """Gradients in bfloat16 have the same direction, and are accumulated in float32 for float32 weights."""
    batch = drawn(tiny_model(), count=12)
    exact = torch.cat([one.flatten() for one in gradients(learner(grad_clip=1e9), batch)])
    half = learner(precision="bfloat16", grad_clip=1e9, micro_batch_tokens=30)
    rounded = torch.cat([one.flatten() for one in gradients(half, batch)])
    assert {one.dtype for one in half.weights.masters.values()} == {rounded.dtype} == {torch.float32}
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("sharpness", [1.0, 8.0], ids=["unsure", "confident"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", [OBJECTIVES[0], OBJECTIVES[2]], ids=lambda objective: objective.kind)
def test_without_reward_a_policy_scored_in_other_batches_does_not_change(objective, precision, sharpness, packed):
    """AdamW turns rounding residuals into full steps; a draw of only such residuals is skipped (decision 30)."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight *= sharpness
    batch = drawn(model, count=8, reward=0.0)
    one = learner(model, objective, lr=3e-4, precision=precision, packed=packed)
    before = one.content()
    with torch.inference_mode():
        together = score(model, collate(batch.prompts, batch.responses))
        alone = [score(model, collate([p], [r])) for p, r in zip(batch.prompts, batch.responses, strict=True)]
    rows = (batch.prompts, batch.responses, batch.written)
    stored = (together.log_policy.numpy(), together.value.numpy())
    with one.as_in_updates():
        scores = scores_in_updates(model, rows, packed)
        noise = measure(scores, rows, stored, max_tokens=65536, packed=packed).at_least(LEAST[precision])
    elsewhere = dataclasses.replace(
        batch,
        log_ref=np.array([float(scores.log_policy) for scores in alone], dtype=np.float32),
        value_ref=np.array([float(scores.value) for scores in alone], dtype=np.float32),
        noise=noise,
    )
    updates = one.learn([elsewhere] * 20)
    assert np.abs(updates[0].delta).max() > 0, "no noise, nothing tested"
    assert all(update.skipped for update in updates)
    assert one.updates_done == 20
    assert one.content() == before


def test_a_draw_with_one_true_residual_is_stepped_on_without_filtering_noise():
    model = tiny_model()
    batch = drawn(model, count=8, reward=0.0)
    batch.reward[3] = 1.0
    (update,) = learner(model).learn([batch])
    assert not update.skipped
    assert update.metrics["quiet"] == 7 / 8
    assert update.delta[3] == pytest.approx(-2.0, abs=1e-5)


def test_a_draw_whose_every_true_residual_is_clipped_is_not_stepped_on():
    """Beyond the clip the loss has no gradient: AdamW would step on noise alone."""
    model = tiny_model()
    batch = drawn(model, count=8, reward=0.0)
    batch.reward[:4] = 100.0
    batch.log_ref[4:] += 1e-6
    before = policy_digest(model)
    (update,) = learner(model, Reval(kind="reval", beta=0.5, clip=10.0)).learn([batch])
    assert update.skipped
    assert policy_digest(model) == before


def test_a_skipped_update_leaves_the_moments_and_counts():
    model = tiny_model()
    one = learner(model, warmup_updates=9)
    one.learn([drawn(model)])
    moments = [state["exp_avg"].clone() for state in one.optimizer.state.values()]
    still = drawn(model, reward=0.0)
    (update,) = one.learn([still])
    assert update.skipped
    assert update.lr == pytest.approx(2e-4)
    assert one.updates_done == 2
    assert all(torch.equal(a, b["exp_avg"]) for a, b in zip(moments, one.optimizer.state.values(), strict=True))


@pytest.mark.parametrize("tokens", [16, 4096])
def test_the_value_term_of_tbrm_is_signal_at_any_length(tokens):
    """At 4,096 tokens the former floor on each residual was 152 nats in bfloat16, and V is about 10."""
    sigma = LEAST["bfloat16"].sigma(np.full(8, tokens))
    assert not is_noise(np.full(8, 10.0), sigma)
    assert is_noise(np.full(8, 1e-4), sigma)


def test_without_reward_tbrm_moves_the_policy_and_reval_does_not():
    """§4.3: TBRM's residual contains V_θ(s_1) itself, which is not 0 at the reference."""
    moved = {}
    for objective in OBJECTIVES[:2]:
        model = tiny_model()
        before = policy_digest(model)
        learner(model, objective).learn([drawn(model, reward=0.0)])
        moved[objective.kind] = policy_digest(model) != before
    assert moved == {"reval": False, "tbrm": True}


def test_grpo_has_no_gradient_for_a_group_of_equal_rewards():
    model = tiny_model()
    batch = dataclasses.replace(drawn(model, reward=1.0), advantage=np.zeros(8, dtype=np.float32))
    one = learner(model, Grpo(kind="grpo"))
    assert not any(gradient.any() for gradient in gradients(one, batch))


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_kernels_are_used_only_in_updates_and_only_if_set(wanted: bool, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    one, seen = learner(deterministic=wanted), []
    one.optimizer.register_step_pre_hook(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    one.learn([drawn(tiny_model())])
    assert seen == [wanted]
    assert not torch.are_deterministic_algorithms_enabled()
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == wanted, "cuBLAS reads it when it starts"


def test_the_learning_rate_decays_over_decay_updates():
    settings = {"updates": 1, "lr": 1.0, "warmup_updates": 1, "decay_updates": 4, "lr_end": 0.2}
    line = [learning_rate(Settings(schedule="linear", **settings), done) for done in range(8)]
    assert line == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    curve = [learning_rate(Settings(schedule="cosine", **settings), done) for done in range(8)]
    assert curve[:2] == pytest.approx([0.5, 1.0])
    assert curve[3] == pytest.approx(0.6)
    assert curve[5:] == pytest.approx([0.2, 0.2, 0.2])


def test_a_spike_stops_the_run_before_its_step_and_names_trajectories():
    model = tiny_model()
    one = learner(model, spike_limit=5.0, lr=1e-5)
    one.learn([drawn(model)] * 12)
    before = policy_digest(model)
    spike = drawn(model)
    spike.reward[6] = 500.0
    with pytest.raises(RunStopped, match=r"times the median of the last 12 updates.*trajectories \[6, "):
        one.learn([spike])
    assert policy_digest(model) == before


def test_updates_without_a_gradient_do_not_make_the_first_one_a_spike():
    model = tiny_model()
    one = learner(model, spike_limit=5.0, lr=1e-5)
    one.learn([drawn(model, reward=0.0)] * 12)
    assert not one.guard.norms
    one.learn([drawn(model)] * 12)
    assert len(one.guard.norms) == 12


def test_gradient_norms_from_before_a_restart_still_define_a_spike(tmp_path):
    model = tiny_model()
    one = learner(model, spike_limit=5.0, lr=1e-5)
    one.learn([drawn(model)] * 12)
    save_checkpoint(tmp_path / "saved", one, make_tiny_tokenizer(TINY.characters))
    other = learner(load_model(tmp_path / "saved"), spike_limit=5.0, lr=1e-5)
    restore_optimizer(tmp_path / "saved", other)
    assert list(other.guard.norms) == list(one.guard.norms)


@pytest.mark.parametrize("settings", [{"rank": 2, "alpha": 4}, {"rank": 2, "alpha": 32}], ids=str)
def test_adapters_of_another_scale_change_the_identity(settings):
    plain, adapted = tiny_model(), tiny_model()
    add_adapters(adapted, Lora(**settings), seed=0)
    other = tiny_model()
    add_adapters(other, Lora(rank=2, alpha=8), seed=0)
    batch = drawn(plain)
    names = {learner(model).next_policy("start", [batch]) for model in (plain, adapted, other)}
    assert len(names) == 3


def test_masked_truncated_responses_contribute_no_gradient():
    batch = drawn(tiny_model(), count=6)
    batch.truncated[:] = [True, False] * 3
    masked = gradients(learner(objective=Reval(kind="reval", beta=0.5, mask_truncated=True), grad_clip=1e9), batch)
    kept = gradients(learner(grad_clip=1e9), pick(batch, [1, 3, 5]))
    for one, other in zip(masked, kept, strict=True):
        assert (one - other / 2).norm() <= 1e-5 * other.norm() + 1e-9


def test_a_custom_objective_is_trained_with_and_identified_by_its_settings():
    function = "tests.models:margin_objective"
    custom = CustomObjective(kind="custom", function=function, settings={"beta": 0.5, "margin": 0.5})
    wider = CustomObjective(kind="custom", function=function, settings={"beta": 0.5, "margin": 1.0})
    model = tiny_model()
    batch = drawn(model)
    one = learner(model, custom, lr=3e-3)
    updates = one.learn([batch] * 30)
    assert updates[-1].loss < 0.5 * updates[0].loss
    assert updates[0].metrics["over"] > 0
    assert learner(objective=wider).next_policy("start", [batch]) != learner(objective=custom).next_policy(
        "start", [batch]
    )


@pytest.mark.parametrize(
    ("fault", "words"), [("shape", r"loss of shape \[8, 1\]"), ("name", "returns a metric with a reserved name")]
)
def test_the_outputs_of_a_custom_objective_are_checked(fault, words):
    custom = CustomObjective(kind="custom", function="tests.models:broken_objective", settings={"fault": fault})
    model = tiny_model()
    with pytest.raises(InputError, match=words):
        learner(model, custom).learn([drawn(model)])
