"""Runs in directories whose names are special to DuckDB or a shell; test_flow.py has one under Prefect."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

from reval.tasks.stage_task import as_template
from reval_core.replay_buffer.index import rebuild_store, sql_views
from reval_core.storage.run_directory import RunDirectory, existing_run
from tests.runs import run, small_config

NAMES = ["*", "run-*", "run-[ab]", "[", "-a b;c&d#1%41$HOME~!", 'it\'s "é日"', "{a,b}, round=1", "a:b.parquet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    run(path, small_config(rounds=1))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_read_and_indexed_under_every_name(finished: Path, tmp_path: Path, name: str) -> None:
    for other in ("run-a", "run-b", name):  # what a pattern would also match
        shutil.copytree(finished, tmp_path / other)
    directory = RunDirectory(tmp_path / name)
    directory.check_place()
    expected = rebuild_store(RunDirectory(finished), 160, None)
    assert rebuild_store(existing_run(directory.path), 160, None) == expected
    count = "SELECT count(*) FROM trajectories"
    assert sql_views(directory.path, directory.manifests()).sql(count).fetchall() == [(expected["trajectories"],)]
    with duckdb.connect(directory.tables, read_only=True) as views:
        assert views.sql(count).fetchall() == [(expected["trajectories"],)]


def test_a_title_with_a_file_name_is_not_a_template() -> None:
    assert as_template("responses to {x} {0}").format(key="k") == "responses to {x} {0}"
