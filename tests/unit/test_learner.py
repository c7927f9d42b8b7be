"""The learner: the same result however the batch is cut, names that can be trusted, and no walk on noise."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from reval_core.batches import collate
from reval_core.checkpoints import checkpoint_state, prune_checkpoints, restore_optimizer, save_checkpoint
from reval_core.config import Grpo, Regression, Reval, Tbrm
from reval_core.config import Learner as Settings
from reval_core.errors import Damaged, RunStopped
from reval_core.learner import Drawn, Learner
from reval_core.models import load_model, make_tiny_tokenizer, policy_digest
from reval_core.scoring import score
from tests.models import TINY, drawn, random_rows, tiny_model

OBJECTIVES = [Reval(kind="reval", beta=0.5), Tbrm(kind="tbrm", beta=0.5), Regression(kind="regression", beta=0.5)]


def learner(model=None, objective=OBJECTIVES[0], **settings) -> Learner:
    chosen = Settings(**({"updates": 1, "lr": 1e-3} | settings))
    return Learner(model or tiny_model(), objective, chosen, "start")


def gradients(one: Learner, batch: Drawn) -> list[torch.Tensor]:
    """The gradient of an update, before clipping changes anything."""
    one.learn([batch])
    return [parameter.grad.clone() for parameter in one.model.parameters()]


@pytest.mark.parametrize("objective", [*OBJECTIVES, Grpo(kind="grpo")], ids=lambda objective: objective.kind)
def test_the_size_of_micro_batches_changes_neither_loss_nor_gradient(objective):
    batch = drawn(tiny_model(), count=12)
    batch = dataclasses.replace(batch, log_ref=batch.log_ref + 0.3)
    whole, cut, single = (
        learner(objective=objective, micro_batch_tokens=tokens, grad_clip=1e9) for tokens in (10_000, 30, 1)
    )
    expected = gradients(whole, batch)
    for other in (cut, single):
        for one, two in zip(expected, gradients(other, batch), strict=True):
            assert (one - two).norm() <= 1e-5 * one.norm() + 1e-9


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


def test_a_policy_is_named_by_what_it_was_fed():
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


def test_weights_that_are_interrupted_lose_their_name():
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
def test_a_restored_learner_goes_on_bit_for_bit(tmp_path, rounds_before):
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


def test_weights_that_were_changed_on_disk_are_refused(tmp_path):
    one = learner()
    save_checkpoint(tmp_path / "saved", one, make_tiny_tokenizer(TINY.characters))
    path = tmp_path / "saved" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="not those that were saved"):
        restore_optimizer(tmp_path / "saved", learner(load_model(tmp_path / "saved")))


def test_pruning_keeps_the_newest_and_what_is_spared(tmp_path):
    for number in range(7):
        (tmp_path / f"round={number:05d}").mkdir()
    prune_checkpoints(tmp_path, keep=2, spared=[0, 3])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"round={number:05d}" for number in (0, 3, 5, 6)]


def test_without_reward_a_policy_scored_under_another_padding_stays_where_it_was():
    """AdamW turns a residual of 1e-6 into full steps; the floor of docs/decisions/0003 keeps it from that."""
    model = tiny_model()
    batch = drawn(model, count=8, reward=0.0)
    long = random_rows(1, 40, 40, seed=9)
    with torch.inference_mode():
        scores = score(model, collate([*batch.prompts, *long], [*batch.responses, *long]))
    elsewhere = dataclasses.replace(
        batch, log_ref=scores.log_policy.numpy()[:8].copy(), value_ref=scores.value.numpy()[:8].copy()
    )
    assert not np.array_equal(elsewhere.log_ref, batch.log_ref), "padding should add noise, or this tests nothing"
    one, before = learner(model, lr=3e-4), policy_digest(model)
    updates = one.learn([elsewhere] * 20)
    assert all(update.loss == 0.0 for update in updates)
    assert policy_digest(one.model) == before
