"""Dynamic sampling and the overlong penalty in runs: what is sampled, trained on, and recorded."""

import shutil
from pathlib import Path

import duckdb
import pytest

from reval.flows.preparation import prepare, prepare_evaluation
from reval_core import stages
from reval_core.errors import InputError, RunStopped
from reval_core.maintenance.check import check_run
from reval_core.pipeline.run_context import open_run_context
from reval_core.regrading.regrade import other_rules, regrade, stored_responses
from reval_core.replay_buffer.index import sql_views
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table
from reval_core.verification import Judgement, Verifier
from tests.integration.test_stored import offline_config, written
from tests.integration.test_training import tables
from tests.runs import first_round, run, small_config

CONFIG = small_config(
    rollouts__prompts=8,
    rollouts__prompts_per_shard=4,
    rollouts__dynamic_sampling={"waves": 2},
    reward__overlong={"buffer": 2, "penalty": 0.5},
    replay__capacity=64,
    rollouts__samples=2,
    problems__train__limit=26,
    evaluation__every=3,
)
"""Responses of up to 4 tokens: with 3 they lose a quarter, with 4 a half."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run that tests may read."""
    path = tmp_path_factory.mktemp("dynamic") / "run"
    run(path, CONFIG)
    return RunDirectory(path)


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run interrupted after its second round, for tests that corrupt a copy of it."""
    path = tmp_path_factory.mktemp("broken") / "run"
    run(path, CONFIG, until=2)
    return path


@pytest.fixture
def sql(finished: RunDirectory) -> duckdb.DuckDBPyConnection:
    return sql_views(finished.path, finished.manifests())


def test_groups_without_signal_are_replaced_by_other_problems_and_recorded(finished, sql):
    groups = sql.execute(
        """
        SELECT t.round, prompt_id, count(DISTINCT v.outcome) AS values, any_value(v.replaced) AS replaced,
               count(*) AS responses, count(DISTINCT v.replaced) AS marks, min(t.trajectory_id) AS first
        FROM trajectories t JOIN verdicts v USING (trajectory_id) GROUP BY ALL ORDER BY first
        """
    ).fetchall()
    assert {(responses, marks) for *_, responses, marks, _ in groups} == {(2, 1)}
    assert all(replaced == (values == 1) for _, _, values, replaced, *_ in groups)
    for round in (1, 2, 3):
        signal = [not replaced for one, _, _, replaced, *_ in groups if one == round]
        asked, waves = 8, 1
        while waves <= 2 and (lacking := 8 - sum(signal[:asked])):
            asked, waves = asked + lacking, waves + 1
        info = finished.manifest("rollouts", round).info
        assert (len(signal), waves) == (asked, info["waves"])
        assert waves > 1, "no group was replaced, nothing tested"
    column = sql.execute("SELECT groups_replaced FROM rounds ORDER BY round").fetchall()
    assert column == [(sum(replaced for one, _, _, replaced, *_ in groups if one == round),) for round in (1, 2, 3)]


def test_every_problem_is_sampled_before_any_twice(sql):
    query = "SELECT prompt_id, count(*) FROM trajectories GROUP BY round, prompt_id ORDER BY min(trajectory_id)"
    asked = sql.execute(query).fetchall()
    assert {responses for _, responses in asked} == {2}, "a problem was sampled twice in a round"
    assert len(asked) > 26, "one epoch, nothing tested"
    assert len({prompt for prompt, _ in asked[:26]}) == 26


def test_only_groups_with_signal_are_learned_from(finished, sql):
    query = "SELECT count(*) FROM draws JOIN verdicts USING (trajectory_id) WHERE replaced"
    assert sql.execute(query).fetchone() == (0,)
    fresh = "SELECT trajectory_id FROM draws WHERE source = 'fresh' ORDER BY 1"
    kept = "SELECT trajectory_id FROM verdicts WHERE NOT replaced ORDER BY 1"
    assert sql.execute(fresh).fetchall() == sql.execute(kept).fetchall()


def test_a_penalty_lowers_the_reward_by_the_length_and_changes_no_accuracy(finished, sql):
    wrong = sql.execute(
        """
        SELECT count(*) FROM verdicts v JOIN trajectories t USING (trajectory_id)
        WHERE outcome IS DISTINCT FROM correct::INT
           OR overlong_penalty IS DISTINCT FROM (CASE response_length WHEN 4 THEN -0.5 WHEN 3 THEN -0.25 ELSE 0 END)
           OR reward IS DISTINCT FROM (outcome + overlong_penalty)::REAL
        """
    ).fetchone()
    assert wrong == (0,)
    below, count = sql.execute("SELECT count(*) FILTER (reward < 0), count(*) FROM verdicts").fetchone()
    assert 0 < below < count, "no long response, nothing tested"
    accuracy = """
        SELECT bool_and(r.accuracy = v.accuracy AND abs(r.overlong_penalty - v.penalty) < 1e-6) FROM rounds r JOIN (
            SELECT round, avg(correct::INT) AS accuracy, avg(overlong_penalty) AS penalty
            FROM verdicts GROUP BY round
        ) v USING (round)
    """
    assert sql.execute(accuracy).fetchone() == (True,)


def test_regrading_by_the_same_rules_gives_the_same_rewards_and_marks(finished):
    stored = stored_responses(finished.path, [])
    rules = other_rules(stored, None, None, None)
    with Verifier.of(rules.verification, rules.reward) as verifier:
        again = regrade(stored, rules, verifier)
    files = [finished.path / finished.facts(round, "verdicts") for round in (1, 2, 3)]
    names = ["trajectory_id", "outcome", "overlong_penalty", "reward", "advantage", "replaced"]
    before = [row for file in files for row in read_table(file, names).to_pylist()]
    assert again.select(names).to_pylist() == before


def test_an_evaluation_of_the_run_has_no_penalty_and_refuses_one(finished, tmp_path):
    protocol = prepare_evaluation(str(finished.path), None, [], None, tmp_path / "e").protocol
    assert protocol.reward.overlong is None
    with pytest.raises(InputError, match=r"reward\.overlong: applies to training only"):
        prepare_evaluation(str(finished.path), None, ["reward.overlong.buffer=1"], None, tmp_path / "e")


def test_offline_training_uses_the_stored_rewards_and_marks(finished, sql, tmp_path):
    changes = {"rounds": 1, "reward": CONFIG.model_dump()["reward"], "learner__updates": 1}
    offline = offline_config(finished.path, **changes, rollouts__max_tokens=5)
    with pytest.raises(InputError, match=r"rollouts\.max_tokens: its trajectories were made with 4, but this"):
        prepare(written(tmp_path / "offline.yaml", offline), [], tmp_path / "offline")
    run(tmp_path / "offline", offline_config(finished.path, **changes, rollouts__max_tokens=4))
    directory = RunDirectory(tmp_path / "offline")
    taken = "SELECT list((reward, replaced) ORDER BY trajectory_id) FROM verdicts"
    theirs = sql_views(directory.path, directory.manifests())
    assert theirs.execute(taken).fetchone() == sql.execute(taken).fetchone()
    drawn = "SELECT count(*) FILTER (replaced), count(*) > 0 FROM draws JOIN verdicts USING (trajectory_id)"
    assert theirs.execute(drawn).fetchone() == (0, True)


def test_the_run_is_intact(finished):
    assert not [problem for result in check_run(finished, CONFIG) for problem in result.problems]


@pytest.mark.parametrize(
    "lost", ["shard-000.parquet", "shard-001.json", "judged-000.json", "shard-002.parquet", "verdicts"]
)
def test_what_is_lost_of_a_round_is_regenerated_bit_for_bit(finished, two_rounds, tmp_path, lost):
    path = tmp_path / "run"
    shutil.copytree(two_rounds, path)
    directory = RunDirectory(path)
    file = (
        path / directory.facts(2, "verdicts")
        if lost == "verdicts"
        else (path / directory.shard(2, 0)).with_name(lost)
    )
    file.unlink()
    run(path, CONFIG)
    assert tables(directory) == tables(finished)


def test_a_round_interrupted_between_waves_judges_no_shard_twice(tmp_path, monkeypatch):
    judged, judge = [], Verifier.judge

    def counted(self, claims):
        judged.append(len(claims))
        if len(judged) == 3:  # the first shard of the second wave
            raise KeyboardInterrupt
        return judge(self, claims)

    monkeypatch.setattr(Verifier, "judge", counted)
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), open_run_context(directory, CONFIG) as context:
        first_round(context, ("rollouts",))
    before = {one.name: one.stat().st_mtime_ns for one in (tmp_path / "run/rollouts/round=00001").iterdir()}
    assert {"judged-000.json", "judged-001.json", "shard-002.parquet"} <= before.keys()
    with open_run_context(directory, CONFIG) as context:
        done = first_round(context, ("rollouts", "verification"))
    after = {one.name: one.stat().st_mtime_ns for one in (tmp_path / "run/rollouts/round=00001").iterdir()}
    assert {name: after[name] for name in before} == before
    rows = sum(file.rows for file in done["rollouts"].files)
    assert sum(judged) == rows + judged[2]  # the interrupted shard twice, everything else once


def test_a_round_without_any_signal_stops_the_run_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Verifier, "judge", lambda self, claims: [Judgement("wrong", None, 0.0)] * len(claims))
    with open_run_context(RunDirectory(tmp_path / "run"), CONFIG) as context:
        done = first_round(context, ("rollouts",))
        assert sum(file.rows for file in done["rollouts"].files) == 3 * 8 * 2
        with pytest.raises(
            RunStopped, match="round 1: in each of its 24 groups all responses have the same reward"
        ):
            stages.verification(context, 1, done["rollouts"])


def test_responses_that_could_not_be_judged_are_judged_again_at_the_next_start(tmp_path, monkeypatch):
    directory, judge = RunDirectory(tmp_path / "run"), Verifier.judge
    with open_run_context(directory, CONFIG) as context:
        done = first_round(context, ("rollouts",))
    notes = sorted((tmp_path / "run/rollouts/round=00001").glob("judged-*.json"))
    assert notes
    for note in notes:
        note.unlink()

    def late(self, claims):
        return [Judgement("timeout", None, 2000.0)] * len(claims)

    monkeypatch.setattr(Verifier, "judge", late)
    with open_run_context(directory, CONFIG) as context, pytest.raises(RunStopped, match="could not be judged"):
        stages.verification(context, 1, done["rollouts"])
    monkeypatch.setattr(Verifier, "judge", judge)
    with open_run_context(directory, CONFIG) as context:
        assert stages.verification(context, 1, done["rollouts"]).files
