"""`reval.open`, `reval.train` and `reval.evaluate` on small runs."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from prefect.testing.utilities import prefect_test_harness

import reval
from reval.flows.querying import QueryError
from reval_core.errors import InputError
from reval_core.replay_buffer.index import sql_views
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS
from tests.conftest import SMALL
from tests.facts import hand_made_run

TABLES = ("rounds", "trajectories", "verdicts", "scores", "draws", "evaluations")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    found = RunDirectory(tmp_path_factory.mktemp("api") / "run")
    hand_made_run(found)
    return found


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_a_frame_with_all_its_rows_and_columns(directory, table):
    frame = getattr(reval.open(directory.path), table)()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == SCHEMAS[table].names
    (count,) = sql_views(directory.path, directory.manifests()).execute(f"SELECT count(*) FROM {table}").fetchone()
    assert len(frame) == count


def test_columns_and_a_round_can_be_selected(directory):
    run = reval.open(str(directory.path))
    everything = run.verdicts()
    number = int(everything["round"].max())
    some = run.verdicts(["reward", "trajectory_id"], round=number)
    assert list(some.columns) == ["reward", "trajectory_id"]
    assert some["trajectory_id"].tolist() == everything[everything["round"] == number]["trajectory_id"].tolist()
    with pytest.raises(InputError, match="verdicts: has no column 'rewards'"):
        run.verdicts(["rewards"])


def test_sql_reads_the_run_and_nothing_else(directory, tmp_path):
    run = reval.open(directory.path)
    assert run.sql("SELECT count(*) AS rows FROM rounds")["rows"].tolist() == [len(run.rounds())]
    for query in (
        f"COPY rounds TO '{tmp_path}/new.csv'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT 1; SELECT 2",
    ):
        with pytest.raises(QueryError):
            run.sql(query)
    assert not list(tmp_path.iterdir())


def test_a_run_is_read_while_its_lock_is_held(directory):
    with directory.lock():
        assert len(reval.open(directory.path).rounds())


def test_train_and_evaluate_return_what_they_made(tmp_path, monkeypatch, capsys):
    settings = copy.deepcopy(SMALL)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with prefect_test_harness(server_startup_timeout=300):
        run = reval.train("small.yaml", {"rounds": 1, "learner.lr": 1e-5}, run_dir="runs/demo")
        assert run.rounds()["round"].tolist() == [1]
        assert yaml.safe_load((run.path / "config.yaml").read_text())["learner"]["lr"] == 1e-5
        results = reval.evaluate("runs/demo", samples=2, limit=3, out="evals/demo")
    assert Path(results["out"]) == tmp_path / "evals/demo"
    assert len(reval.open(results["out"]).evaluations()) == 6
    page = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
    program = next(one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "reval.open" in one)
    exec(compile(program, "api.md", "exec"), {})
    assert "held_out_accuracy" in capsys.readouterr().out
