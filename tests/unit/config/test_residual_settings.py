"""The fraction of the residual that is left, and what depends on it: K, and resets of the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from reval_core.atomic_files import digest
from reval_core.config import Learner, Reference
from reval_core.learning.checkpoints import retained_checkpoints
from reval_core.replay_buffer.sampling import residual_left
from reval_core.storage.tables import Manifest
from tests.buffers import buffer_of
from tests.runs import small_config


def test_the_residual_left_is_the_mean_residual_over_the_mean_scaled_reward(tmp_path: Path) -> None:
    deltas = [-10.0, 5.0, 0.0, 5.0]  # all rewards are 1, so at the reference each |Δ| were 1/β = 10
    assert residual_left(buffer_of(tmp_path, deltas), beta=0.1) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(("deltas", "share"), [([0.0, 0.0], 0.0), ([0.0, -3.0], 1.0)])
def test_the_residual_left_without_any_reward_is_zero_or_one(
    tmp_path: Path, deltas: list[float], share: float
) -> None:
    assert residual_left(buffer_of(tmp_path, deltas, rewards=[0.0, 0.0]), beta=0.1) == share


def test_the_residual_left_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    deltas = np.random.default_rng(0).lognormal(0, 5, 400).astype(np.float32)
    shares = set()
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        shuffled = np.random.default_rng(number).permutation(deltas)
        shares.add(residual_left(buffer_of(tmp_path / str(number), shuffled), beta=0.3))
    assert len(shares) == 1


@pytest.mark.parametrize(
    ("left", "updates"), [(0.0, 2), (0.1, 2), (0.24, 4), (0.5, 8), (0.97, 16), (1.0, 16), (7.0, 16)]
)
def test_updates_follow_the_residual_between_minimum_and_maximum(left: float, updates: int) -> None:
    assert Learner(updates=16, least_updates=2, lr=1.0).updates_with(left) == updates


def test_updates_from_a_buffer(tmp_path: Path) -> None:
    left = residual_left(buffer_of(tmp_path, [2.5] * 40), beta=0.1)
    assert Learner(updates=16, least_updates=1, lr=1.0).updates_with(left) == 4


def test_without_the_setting_the_residual_changes_nothing() -> None:
    assert {Learner(updates=3, lr=1.0).updates_with(left) for left in (None, 0.0, 0.4)} == {3}
    assert not any(Reference().reset_after(number, 0.01) for number in range(10))
    assert [number for number in range(1, 9) if Reference(reset_every=3).reset_after(number, 0.01)] == [3, 6]


def test_unset_settings_do_not_change_digests() -> None:
    """The identities of runs from before these settings: the digested sections have no new keys."""
    config = small_config()
    assert "least_updates" not in config.learner.model_dump(mode="json")
    following = small_config(learner__least_updates=1)
    assert digest(following.learner.model_dump()) != digest(config.learner.model_dump())
    assert config.objective.model_dump(mode="json") == {
        "kind": "reval",
        "beta": 0.1,
        "huber": None,
        "clip": None,
        "length_normalised": False,
        "mask_truncated": False,
    }


def test_a_reset_follows_a_round_that_started_below_the_threshold() -> None:
    reference = Reference(reset_below=0.3)
    assert [left for left in (1.0, 0.31, 0.3, 0.29, 0.01) if reference.reset_after(7, left)] == [0.29, 0.01]
    assert not reference.reset_after(7, 0.0), "nothing to learn from is no reason"


def test_the_checkpoint_of_a_reference_reset_by_the_residual_is_kept() -> None:
    def manifest(stage: str, round: int, **info: float) -> Manifest:
        return Manifest(stage, round, key="", info=info)

    lefts = {1: 1.0, 2: 0.2, 3: 1.0, 4: 0.5, 5: 0.4}
    manifests = [manifest("sampling", round, residual_left=left) for round, left in lefts.items()]
    manifests += [manifest("checkpoint", round) for round in lefts]
    config = small_config(checkpoints__keep=1, reference__reset_below=0.3)
    assert retained_checkpoints(manifests, config) == {0, 2, 5}


@pytest.mark.parametrize("setting", [{"learner__least_updates": 1}, {"reference__reset_below": 0.3}])
def test_residual_settings_need_no_explicit_beta(setting: dict[str, float]) -> None:
    objective = {"kind": "reval", "beta_times_length": 11}
    assert small_config(objective=objective, replay__sampling="prioritised", **setting).objective.beta is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learner__least_updates": 3}, "least_updates: 3 is more than updates"),
        ({"learner__least_updates": 0}, "greater than or equal to 1"),
        ({"reference": {"reset_every": 2, "reset_below": 0.3}}, "reset_below: replaces reset_every"),
        ({"reference__reset_below": 1.0}, "less than 1"),
        ({"objective": {"kind": "reval"}}, "beta: is missing; set it, or beta_times_length"),
        ({"objective__beta_times_length": 11}, "replaces beta; set only one of the two"),
        ({"objective": {"kind": "grpo", "beta_times_length": 11}}, "Extra inputs are not permitted"),
        (
            {"objective": {"kind": "grpo"}, "learner__least_updates": 1},
            "learner.least_updates: grpo without",
        ),
        ({"objective": {"kind": "grpo"}, "reference__reset_below": 0.3}, "reference.reset_below: grpo without"),
    ],
)
def test_inconsistent_settings_are_refused_at_load(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        small_config(**changes)
