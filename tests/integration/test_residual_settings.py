"""Runs whose K, resets and β go by what is found on the way: what they leave, and that they go on bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.rounds import train_rounds
from reval_core import stages
from reval_core.beta import with_beta
from reval_core.check import check_run
from reval_core.checkpoints import checkpoint_rounds
from reval_core.config import Config
from reval_core.draws import DrawReader
from reval_core.pruning import prune
from reval_core.replay import recorded_policy, replay
from reval_core.report import write_report
from reval_core.run_folder import RunFolder
from reval_core.session import open_session
from reval_core.store import sql_views
from reval_core.summary import summarise
from tests.integration.test_training import tables
from tests.runs import run, small_config

CONFIG = small_config(
    objective={"kind": "reval", "beta_times_length": 3.5},
    replay__capacity=128,
    reward__kind="signed",
    learner__updates=6,
    learner__least_updates=2,
    reference__reset_below=0.9,
    checkpoints__keep=1,
)
"""Three rounds, of which the second begins with less of the residual than the first, and ends with a reset."""


class Broken(Exception):
    """Stands for whatever ends a process."""


class BreakingOff:
    """The stages, of which one breaks off before or after its work in a round."""

    def __init__(self, stage: str, round: int, when: str) -> None:
        self._at = (stage, round)
        self._when = when

    def __getattr__(self, name: str) -> Any:
        def call(session: Any, round: int, *inputs: Any) -> Any:
            struck = (name, round) == self._at
            if struck and self._when == "before":
                raise Broken
            manifest = getattr(stages, name)(session, round, *inputs)
            if struck:
                raise Broken
            return manifest

        return call


def broken_off(path: Path, config: Config, stage: str, round: int, when: str) -> None:
    """A run that ends in the middle of a round."""
    with pytest.raises(Broken), open_session(RunFolder(path), config) as session:
        for _ in train_rounds(session, BreakingOff(stage, round, when)):
            pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing happened to. Tests may read it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    run(path, CONFIG)
    return RunFolder(path)


def test_each_round_makes_as_many_updates_as_its_residual_asks_for(finished: RunFolder) -> None:
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


def test_the_reference_is_reset_after_the_rounds_that_began_below(finished: RunFolder) -> None:
    lefts = [finished.manifest("sampling", number).info["residual_left"] for number in range(1, 4)]
    below = [number for number, left in enumerate(lefts, start=1) if left < 0.9]
    assert below == [one.round for one in finished.manifests(("reference_reset",))] == [2]
    assert lefts[2] == pytest.approx(1.0), "the reference of round 3 is the policy: all of the residual is left"
    assert {0, 2, 3} <= set(checkpoint_rounds(finished.checkpoints))


def test_a_check_finds_nothing_wrong(finished: RunFolder) -> None:
    findings = list(check_run(finished, CONFIG))
    assert [finding.part for finding in findings] == ["files", "rows", "database", "replay"]
    assert [problem for finding in findings for problem in finding.problems] == []


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
def test_a_run_broken_off_in_the_round_of_a_reset_ends_as_one_that_was_not(
    finished: RunFolder, tmp_path: Path, stage: str, when: str
) -> None:
    path = tmp_path / "run"
    broken_off(path, CONFIG, stage, 2, when)
    summary = run(path, CONFIG)
    assert summary is not None
    assert summary["policy_digest"] == summarise(finished)["policy_digest"]
    assert tables(RunFolder(path)) == tables(finished)


def test_what_was_decided_stands_when_the_store_has_moved_on(finished: RunFolder, tmp_path: Path) -> None:
    """Without its manifest a round's sampling is made again, from the buffer as it was before it."""
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    folder = RunFolder(path)
    lost = folder.manifest("sampling", 2)
    folder.manifest_path("sampling", 2).unlink()
    folder.manifest_path("reference_reset", 2).unlink()
    run(path, CONFIG)
    assert folder.manifest("sampling", 2).info == lost.info
    assert tables(folder) == tables(finished)


def test_where_least_and_most_are_one_the_weights_are_those_of_a_fixed_k(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", small_config(rounds=2))
    following = run(tmp_path / "following", small_config(rounds=2, learner__least_updates=2))
    assert plain["policy_digest"] == following["policy_digest"]


def mean_length(folder: RunFolder, round: int) -> float:
    """The mean tokens of a round's responses."""
    query = "SELECT avg(response_length) FROM trajectories WHERE round = $round"
    views = sql_views(folder.path, folder.manifests())
    (length,) = views.execute(query, {"round": round}).fetchone()
    return float(length)


def test_beta_comes_from_the_length_and_is_that_of_a_run_that_names_it(finished: RunFolder, tmp_path: Path) -> None:
    beta = finished.manifest("consistency", 1).info["beta"]
    assert beta == pytest.approx(3.5 / mean_length(finished, round=1), rel=1e-12)
    assert {one.info["beta"] for one in finished.manifests(("consistency",))} == {beta}
    named = RunFolder(tmp_path / "named")
    run(named.path, CONFIG.model_copy(update={"objective": small_config(objective__beta=beta).objective}))
    keys = [
        [(one.stage, one.round, one.key) for one in folder.manifests(("consistency", "sampling", "learning"))]
        for folder in (finished, named)
    ]
    assert keys[0] == keys[1]
    assert tables(named) == tables(finished)


@pytest.mark.parametrize(
    ("stage", "when"),
    [("rollouts", "before"), ("rollouts", "after"), ("consistency", "before"), ("learning", "after")],
)
def test_a_run_broken_off_around_the_finding_of_beta_ends_as_one_that_was_not(
    finished: RunFolder, tmp_path: Path, stage: str, when: str
) -> None:
    path = tmp_path / "run"
    broken_off(path, CONFIG, stage, 1, when)
    run(path, CONFIG)
    assert tables(RunFolder(path)) == tables(finished)


@pytest.mark.parametrize("round", [1, 3])
def test_a_policy_is_rebuilt_outside_of_the_run(finished: RunFolder, tmp_path: Path, round: int) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    folder = RunFolder(path)
    for number in checkpoint_rounds(folder.checkpoints):
        if number > 0:
            shutil.rmtree(folder.checkpoint(number))
    policy = recorded_policy(folder, round)
    assert policy is not None
    assert replay(folder, CONFIG, DrawReader(folder), policy).policy == policy.identity


def test_a_stored_run_takes_all_of_its_trajectories(finished: RunFolder, tmp_path: Path) -> None:
    stored = small_config(
        rounds=1,
        rollouts={"source": "stored", "run": str(finished.path), "batch": 32},
        objective={"kind": "reval", "beta_times_length": 3.5},
        replay={"capacity": 400, "first": "buffer"},
        reward__kind="signed",
    )
    run(tmp_path / "run", stored)
    folder = RunFolder(tmp_path / "run")
    beta = folder.manifest("consistency", 0).info["beta"]
    assert beta == pytest.approx(3.5 / mean_length(folder, round=0), rel=1e-12)


def test_the_report_says_what_beta_came_to(finished: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    text = write_report(RunFolder(path)).read_text(encoding="utf-8")
    assert "<dt>β</dt>" in text
    assert "Residual left" in text


def test_a_pruned_run_still_knows_its_beta(finished: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    folder = RunFolder(path)
    known = with_beta(CONFIG, folder).objective
    folder.summary.write_text("{}")
    prune(folder, CONFIG)
    assert folder.pruned_to() >= 1, "round 1 is still there: the test shows nothing"
    assert with_beta(CONFIG, folder).objective == known
