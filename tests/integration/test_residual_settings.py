"""Runs whose K, resets and β depend on their residuals: their tables, and that they resume bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from reval.flows.rounds import Runner, run_here, train_rounds
from reval_core.config import Config
from reval_core.learning.checkpoints import checkpoint_rounds
from reval_core.learning.draws import DrawReader
from reval_core.learning.resolution import with_beta
from reval_core.maintenance.check import check_run
from reval_core.maintenance.prune import prune
from reval_core.pipeline.reconstruction import reconstruct, recorded_policy
from reval_core.pipeline.run_context import open_run_context
from reval_core.replay_buffer.index import sql_views
from reval_core.report import write_report
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest
from tests.integration.test_training import tables
from tests.runs import first_round, run, small_config

CONFIG = small_config(
    objective={"kind": "reval", "beta_times_length": 3.5},
    replay__capacity=128,
    reward__kind="signed",
    learner__updates=6,
    learner__least_updates=2,
    reference__reset_below=0.9,
    checkpoints__keep=1,
)
"""Three rounds; the second starts with less residual than the first, and ends with a reset."""


class Broken(Exception):
    """Simulates the end of a process."""


def breaking_off(stage: str, round: int, when: str) -> Runner:
    """A runner that is interrupted before or after the work of a stage in a round."""

    def run(one: Any, context: Any, number: int, *inputs: Any, **named: Any) -> Manifest:
        struck = (one.name, number) == (stage, round)
        if struck and when == "before":
            raise Broken
        manifest = run_here(one, context, number, *inputs, **named)
        if struck:
            raise Broken
        return manifest

    return run


def broken_off(path: Path, config: Config, stage: str, round: int, when: str) -> None:
    """A run interrupted in the middle of a round."""
    with pytest.raises(Broken), open_run_context(RunDirectory(path), config) as context:
        for _ in train_rounds(context, breaking_off(stage, round, when)):
            pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """An undisturbed run. Tests may read it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    run(path, CONFIG)
    return RunDirectory(path)


def test_each_round_makes_as_many_updates_as_its_residual_requires(finished: RunDirectory) -> None:
    views = sql_views(finished.path, finished.manifests())
    found = views.sql(
        """
        SELECT residual_left, (SELECT count(*) FROM updates u WHERE u.round = r.round) AS updates,
               (SELECT count(DISTINCT "update") FROM draws d WHERE d.round = r.round) AS drawn
        FROM rounds r ORDER BY round
        """
    ).fetchall()
    assert [(updates, drawn) for _, updates, drawn in found] == [
        (max(2, round(6 * min(1, left))),) * 2 for left, _, _ in found
    ]
    assert len({updates for _, updates, _ in found}) > 1, "K never changed: the test shows nothing"
    recorded = [finished.manifest("sampling", number).info for number in range(1, 4)]
    assert [(info["residual_left"], info["updates"]) for info in recorded] == [row[:2] for row in found]


def test_the_reference_is_reset_after_rounds_that_started_below_the_limit(finished: RunDirectory) -> None:
    lefts = [finished.manifest("sampling", number).info["residual_left"] for number in range(1, 4)]
    below = [number for number, left in enumerate(lefts, start=1) if left < 0.9]
    assert below == [one.round for one in finished.manifests(("reference_reset",))] == [2]
    assert lefts[2] == pytest.approx(1.0), "the reference of round 3 is the policy: all of the residual is left"
    assert {0, 2, 3} <= set(checkpoint_rounds(finished.checkpoints))


def test_a_check_finds_nothing_wrong(finished: RunDirectory) -> None:
    results = list(check_run(finished, CONFIG))
    assert [result.part for result in results] == ["files", "rows", "database", "replay"]
    assert [problem for result in results for problem in result.problems] == []


@pytest.mark.parametrize(
    ("stage", "when"),
    [
        ("sampling", "before"),
        ("learning", "before"),
        ("checkpoint", "before"),
        ("reference_reset", "before"),
        ("reference_reset", "after"),
    ],
)
def test_a_run_interrupted_in_the_round_of_a_reset_ends_like_an_undisturbed_one(
    finished: RunDirectory, tmp_path: Path, stage: str, when: str
) -> None:
    path = tmp_path / "run"
    broken_off(path, CONFIG, stage, 2, when)
    summary = run(path, CONFIG)
    assert summary is not None
    assert summary["policy_digest"] == summarise(finished)["policy_digest"]
    assert tables(RunDirectory(path)) == tables(finished)


def test_recorded_decisions_hold_when_the_buffer_has_changed(finished: RunDirectory, tmp_path: Path) -> None:
    """Without its manifest a round's sampling is repeated, from the buffer as it was before the round."""
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    directory = RunDirectory(path)
    lost = directory.manifest("sampling", 2)
    directory.manifest_path("sampling", 2).unlink()
    directory.manifest_path("reference_reset", 2).unlink()
    run(path, CONFIG)
    assert directory.manifest("sampling", 2).info == lost.info
    assert tables(directory) == tables(finished)


def test_equal_least_and_most_give_the_weights_of_a_fixed_k(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", small_config(rounds=2))
    following = run(tmp_path / "following", small_config(rounds=2, learner__least_updates=2))
    assert plain["policy_digest"] == following["policy_digest"]


def mean_length(directory: RunDirectory, round: int) -> float:
    """The mean tokens of a round's responses."""
    query = "SELECT avg(response_length) FROM trajectories WHERE round = $round"
    views = sql_views(directory.path, directory.manifests())
    (length,) = views.execute(query, {"round": round}).fetchone()
    return float(length)


def test_beta_from_the_length_equals_the_same_beta_in_a_config(finished: RunDirectory, tmp_path: Path) -> None:
    beta = finished.manifest("consistency", 1).info["beta"]
    assert beta == pytest.approx(3.5 / mean_length(finished, round=1), rel=1e-12)
    assert {one.info["beta"] for one in finished.manifests(("consistency",))} == {beta}
    named = RunDirectory(tmp_path / "named")
    run(named.path, CONFIG.model_copy(update={"objective": small_config(objective__beta=beta).objective}))
    keys = [
        [(one.stage, one.round, one.key) for one in directory.manifests(("consistency", "sampling", "learning"))]
        for directory in (finished, named)
    ]
    assert keys[0] == keys[1]
    assert tables(named) == tables(finished)


@pytest.mark.parametrize(
    ("stage", "when"),
    [("rollouts", "before"), ("rollouts", "after"), ("consistency", "before"), ("learning", "after")],
)
def test_a_run_interrupted_while_beta_is_measured_ends_like_an_undisturbed_one(
    finished: RunDirectory, tmp_path: Path, stage: str, when: str
) -> None:
    path = tmp_path / "run"
    broken_off(path, CONFIG, stage, 1, when)
    run(path, CONFIG)
    assert tables(RunDirectory(path)) == tables(finished)


@pytest.mark.parametrize("round", [1, 3])
def test_a_policy_is_reconstructed_outside_of_the_run(finished: RunDirectory, tmp_path: Path, round: int) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    directory = RunDirectory(path)
    for number in checkpoint_rounds(directory.checkpoints):
        if number > 0:
            shutil.rmtree(directory.checkpoint(number))
    policy = recorded_policy(directory, round)
    assert policy is not None
    assert reconstruct(directory, CONFIG, DrawReader(directory), policy).policy == policy.identity


def test_the_config_of_an_open_run_does_not_change_when_beta_becomes_known(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with open_run_context(directory, CONFIG) as context:
        config, recorded = context.config, directory.config.read_text()
        with pytest.raises(AssertionError, match="before the first responses"):
            _ = context.objective
        first_round(context, ["rollouts"])
        assert context.objective.beta == pytest.approx(3.5 / mean_length(directory, round=1), rel=1e-12)
        assert context.learner_at(recorded_policy(directory, 0)).objective == context.objective
        assert context.config is config
    assert directory.config.read_text() == recorded


def test_offline_training_measures_beta_on_all_trajectories(finished: RunDirectory, tmp_path: Path) -> None:
    stored = small_config(
        rounds=1,
        rollouts={"source": "stored", "run": str(finished.path), "batch": 32},
        objective={"kind": "reval", "beta_times_length": 3.5},
        replay={"capacity": 400, "first": "buffer"},
        reward__kind="signed",
    )
    run(tmp_path / "run", stored)
    directory = RunDirectory(tmp_path / "run")
    beta = directory.manifest("consistency", 0).info["beta"]
    assert beta == pytest.approx(3.5 / mean_length(directory, round=0), rel=1e-12)


def test_the_report_shows_the_measured_beta(finished: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    text = write_report(RunDirectory(path)).read_text(encoding="utf-8")
    assert "<dt>β</dt>" in text
    assert "Residual left" in text


def test_a_pruned_run_still_knows_its_beta(finished: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    directory = RunDirectory(path)
    known = with_beta(CONFIG, directory).objective
    directory.summary.write_text("{}")
    prune(directory, CONFIG)
    assert directory.pruned_to() >= 1, "round 1 was not pruned: nothing was tested"
    assert with_beta(CONFIG, directory).objective == known
