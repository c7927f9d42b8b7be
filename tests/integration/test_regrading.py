"""`reval regrade`: stored responses under other rules, without changes to the run."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from reval_core.atomic_files import file_digest, publish_json
from reval_core.config.loader import load_config
from reval_core.evaluation.directory import EvaluationDirectory
from reval_core.maintenance.prune import prune
from reval_core.regrading.changes import changes
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS, Manifest, publish_table
from tests.commands import Reval, command
from tests.facts import hand_made_run

JUDGE = """
def starts_with_1(problem, gold, response):
    return response.startswith("1")

def half(problem, gold, response):
    return 0.5

def needs_a_setting(problem, gold, response, setting):
    return 0
"""


@pytest.fixture
def reval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reval:
    """Run the command next to a module with reward functions; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "regrading_judges.py").write_text(JUDGE)

    return command(capsys, monkeypatch, "regrade")


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Two rounds of two prompts with two responses: 4 (right), 13; 111… (truncated in round 1), and a timeout."""
    directory = RunDirectory(tmp_path / "runs" / "hand")
    hand_made_run(directory)
    return directory


def contents(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file_digest(file) for file in path.rglob("*") if file.is_file()}


def test_the_run_is_not_changed_and_its_lock_not_taken(reval: Reval, directory: RunDirectory) -> None:
    with directory.lock():
        before = contents(directory.path)
        code, out, _ = reval(directory.path, "--methods", "whole", "--json")
        assert contents(directory.path) == before
    assert code == 0
    found = json.loads(out)
    assert found["trajectories"] == 8
    assert {(one["before"], one["now"]): one["count"] for one in found["verdicts"]} == {
        ("correct", "correct"): 2,
        ("wrong", "wrong"): 3,
        ("truncated", "truncated"): 1,
        ("timeout", "wrong"): 2,
    }
    assert [(one["round"], one["changed"]) for one in found["rounds"]] == [("1", 1), ("2", 1)]


def test_a_function_regrades_with_the_rewards_of_a_run_under_it(reval: Reval, directory: RunDirectory) -> None:
    code, out, _ = reval(directory.path, "--function", "regrading_judges:starts_with_1", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["rules"]["reward"]["function"] == "regrading_judges:starts_with_1"
    first, second = found["rounds"]
    # Round 1: 4 was correct and now is not, 13 is now; the truncated one stays, and the timeout is wrong now.
    assert (first["accuracy_before"], first["accuracy"]) == (0.25, 0.25)
    assert (first["reward_before"], first["reward"]) == (pytest.approx(1 / 3), 0.25)
    assert (first["groups"], first["groups_turned"]) == (2, 1), "the easy prompt's two responses change places"
    assert (second["accuracy_before"], second["accuracy"]) == (0.25, 0.5)
    assert (second["groups"], second["groups_turned"]) == (2, 2), "the hard prompt has a signal now"
    examples = [(one["trajectory_id"], one["verdict_before"], one["verdict"]) for one in found["examples"]]
    assert (IDS_PER_ROUND, "correct", "wrong") in examples
    assert (IDS_PER_ROUND + 1, "wrong", "correct") in examples


def test_the_table_joins_with_the_run_in_any_duckdb(reval: Reval, directory: RunDirectory) -> None:
    """The query of docs/verification.md."""
    reval(directory.path, "--function", "regrading_judges:half")
    out = directory.path.with_name("hand-regraded.parquet")
    table = pq.read_table(out)
    assert table.column_names[: len(SCHEMAS["verdicts"])] == SCHEMAS["verdicts"].names
    assert json.loads(table.schema.metadata[b"reval.regraded"])["run"] == "hand"
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"""
            SELECT t.trajectory_id, g.verdict_before, g.verdict, g.reward FROM '{out}' g
            JOIN read_parquet('{directory.path}/rollouts/*/shard-*.parquet', hive_partitioning = false) t
            USING (trajectory_id) ORDER BY 1
            """
        ).fetchall()
    assert len(rows) == 8
    assert rows[0] == (IDS_PER_ROUND, "correct", "wrong", 0.5)


def test_one_round_and_a_chosen_file(reval: Reval, directory: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "second.parquet"
    code, _, _ = reval(directory.path, "--round", "2", "--methods", "whole", "--out", out)
    assert code == 0
    assert set(pq.read_table(out).column("round").to_pylist()) == {2}


def test_what_is_printed_fits_80_columns(reval: Reval, directory: RunDirectory) -> None:
    code, out, _ = reval(directory.path, "--methods", "whole")
    assert code == 0
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert out.startswith("hand: 8 responses, 2 change their verdict (25.0%)\n")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "timeout wrong 2" in lines
    assert "1 4 25.0% 25.0% → 25.0% 0.333 → 0.250 0/2" in lines
    assert any(line.startswith(f"trajectory {IDS_PER_ROUND + 3}: timeout -> wrong") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere: is not a run directory"),
        (["runs/hand", "--round", "3"], "round 3 has no verdicts; judged: rounds 1 to 2"),
        (["runs/hand", "--methods", "boxes"], "--methods boxes: 'boxes' is not a method; choose from final, boxed"),
        (["runs/hand", "--function", "nothing:here"], "--function nothing:here: cannot import nothing"),
        (["runs/hand", "--function", "regrading_judges:no"], "regrading_judges has no function no"),
        (["runs/hand", "--function", "regrading_judges:needs_a_setting"], "does not take these settings"),
        (["runs/hand", "--out", "there.parquet"], "there.parquet: already exists; give --out a new file"),
        (["runs/hand", "--out", "runs/hand/new.parquet"], "is inside"),
        (["runs/hand", "--out", "there.parquet/new.parquet"], "there.parquet/new.parquet: cannot be written"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_judged(
    reval: Reval, directory: RunDirectory, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "there.parquet").write_text("not ours")
    before = contents(tmp_path)
    code, out, complained = reval(*arguments)
    assert (code, out) == (2, "")
    assert complaint in complained
    assert len(complained.splitlines()) == 1
    assert contents(tmp_path) == before


def test_a_pruned_run_still_has_its_texts(reval: Reval, directory: RunDirectory, tmp_path: Path) -> None:
    reval(directory.path, "--methods", "whole", "--out", tmp_path / "whole.parquet")
    settings = yaml.safe_load(directory.config.read_text())
    settings["rollouts"] |= {"prompts": 1, "samples": 2, "prompts_per_shard": 1}
    settings["replay"]["capacity"] = 3  # those of the last round that have a reward
    directory.config.write_text(yaml.safe_dump(settings))
    publish_json(directory.summary, {})
    prune(directory, load_config(directory.config))
    assert list(directory.path.glob("pruned-*"))
    code, _, _ = reval(directory.path, "--methods", "whole", "--out", tmp_path / "pruned.parquet")
    assert code == 0
    tables = [
        pq.read_table(tmp_path / f"{name}.parquet").drop_columns(["milliseconds"]) for name in ("whole", "pruned")
    ]
    assert tables[0].equals(tables[1])


def test_an_evaluation_is_judged_again_by_problem_set(
    reval: Reval, directory: RunDirectory, tmp_path: Path
) -> None:
    shards = pq.read_table(directory.path / directory.shard(2, 0)).replace_schema_metadata()
    evaluation = hand_made_evaluation(tmp_path / "evals" / "hand", shards)
    code, out, _ = reval(evaluation.path, "--function", "regrading_judges:starts_with_1", "--json")
    assert code == 0
    found = json.loads(out)
    [part] = found["problem_sets"]
    assert (part["problem_set"], part["trajectories"], part["reward_before"]) == ("1-digit sums", 4, None)
    assert (part["accuracy_before"], part["accuracy"]) == (0.25, 0.5)
    assert Path(found["out"]) == tmp_path / "evals" / "hand-regraded.parquet"


def hand_made_evaluation(path: Path, trajectories: pa.Table) -> EvaluationDirectory:
    directory = EvaluationDirectory(path)
    path.mkdir(parents=True)
    directory.protocol.write_text(yaml.safe_dump({"model": "m", "round": 2, "benchmarks": []}))
    number = directory.benchmark("key")
    shard = publish_table(path, directory.shard(number, 0), "trajectories", trajectories)
    directory.publish(Manifest("rollouts", number, "key", (shard,)))
    rows = trajectories.select([name for name in SCHEMAS["evaluations"].names if name in trajectories.column_names])
    correct = [True, False, False, False]
    judged = {"verdict": ["correct" if one else "wrong" for one in correct], "correct": correct}
    for name in ("verdict", "extracted", "correct"):
        rows = rows.append_column(name, pa.array(judged.get(name, trajectories.column("response").to_pylist())))
    verdicts = publish_table(
        path, directory.facts(number, "evaluations"), "evaluations", rows.select(SCHEMAS["evaluations"].names)
    )
    directory.publish(Manifest("evaluation", number, "verdicts", (verdicts,)))
    directory.make_current("p1", "settings", "1-digit sums", number)
    return directory


def test_a_group_turns_only_where_a_response_changes_sides() -> None:
    table = pa.table(
        {
            "round": [1] * 6,
            "prompt_id": ["a", "a", "b", "b", "c", "c"],
            "verdict_before": ["wrong"] * 6,
            "verdict": ["wrong"] * 6,
            "reward_before": [1.0, 0.0, 1.0, 0.0, None, 1.0],
            "reward": [0.5, 0.25, 0.0, 1.0, None, 0.5],
        }
    )
    [change] = changes(table, "round")
    assert (change.groups, change.groups_turned, change.changed) == (3, 1, 0)


def test_a_reward_that_came_with_a_response_stays(reval: Reval, directory: RunDirectory) -> None:
    """Round 0 of an import: one response has a gold, one came with a reward."""
    shards = pq.read_table(directory.path / directory.shard(1, 0)).replace_schema_metadata().slice(0, 2)
    changed = {"trajectory_id": [0, 1], "round": [0, 0], "gold": ["4", None], "given_reward": [None, 0.75]}
    for name, values in changed.items():
        shards = shards.set_column(shards.schema.get_field_index(name), name, [values])
    verdicts = {"trajectory_id": [0, 1], "round": [0, 0], "verdict": ["correct", "given"], "reward": [1.0, 0.75]}
    rows = pa.Table.from_pylist(pa.table(verdicts).to_pylist(), SCHEMAS["verdicts"])
    for stage, table, path, values in (
        ("rollouts", "trajectories", directory.shard(0, 0), shards),
        ("verification", "verdicts", directory.facts(0, "verdicts"), rows),
    ):
        directory.publish(Manifest(stage, 0, stage, (publish_table(directory.path, path, table, values),)))
    code, out, _ = reval(directory.path, "--round", "0", "--function", "regrading_judges:half", "--json")
    assert code == 0
    found = json.loads(out)
    assert [(one["before"], one["now"]) for one in found["verdicts"]] == [("correct", "wrong"), ("given", "given")]
    assert (found["rounds"][0]["reward_before"], found["rounds"][0]["reward"]) == (0.875, 0.625)
    assert pq.read_table(found["out"]).column("reward").to_pylist() == [0.5, 0.75]
