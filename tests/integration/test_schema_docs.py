"""docs/schema.md against the code: every column is described, and every query runs and finds something."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import duckdb
import pytest

from reval_core.replay_buffer.index import Store, sql_views
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS
from tests.facts import hand_made_run

TEXT = (Path(__file__).parents[2] / "docs" / "schema.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
QUERIES = re.findall(r"^\*\*(\d+)\. .*?^```sql\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A hand-made run."""
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "small")
    hand_made_run(directory)
    return directory


@pytest.mark.parametrize("table", [*SCHEMAS, "off_policy"])
def test_every_column_is_described_with_its_type(table: str, directory: RunDirectory) -> None:
    with sql_views(directory.path, directory.manifests()) as connection:
        columns = [row[:2] for row in connection.execute(f'DESCRIBE "{table}"').fetchall()]
    # The columns of `partials` are documented under `trajectories`.
    section = SECTIONS["trajectories" if table == "partials" else table]
    described = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^ ].* \|$", section, re.MULTILINE)
    assert described == columns


def test_there_are_ten_questions() -> None:
    assert [int(number) for number, _ in QUERIES] == list(range(1, 11))
    assert TEXT.count("```sql") == len(QUERIES)


@pytest.mark.parametrize(("number", "query"), QUERIES)
def test_every_query_runs_and_finds_something(number: str, query: str, directory: RunDirectory) -> None:
    with sql_views(directory.path, directory.manifests()) as connection:
        assert connection.execute(query).fetchall()


def test_plain_duckdb_reads_the_files_as_the_docs_say(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = re.findall(r'^duckdb -c "(.*)"$', TEXT, re.MULTILINE)
    monkeypatch.chdir(directory.path.parent)
    with duckdb.connect() as connection:
        found = connection.execute(command.replace("runs/demo", directory.name)).fetchall()
    assert [row[0] for row in found] == [1, 2]


def test_the_database_of_views_opens_as_the_docs_say(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With DuckDB's CLI if installed, otherwise with the Python package."""
    ((path, query),) = re.findall(r'^duckdb -readonly (\S+) "(.*)"$', TEXT, re.MULTILINE)
    path = path.replace("runs/demo", directory.name)
    monkeypatch.chdir(directory.path.parent)
    store = Store(directory.path, directory.database, capacity=100)
    store.build(directory.manifests())
    store.publish_views(directory.tables)
    store.close()
    if program := shutil.which("duckdb"):
        command = [program, "-readonly", "-csv", "-noheader", path, query]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        rounds = [int(line.split(",")[0]) for line in lines]
    else:
        with duckdb.connect(path, read_only=True) as connection:
            rounds = [row[0] for row in connection.execute(query).fetchall()]
    assert rounds == [1, 2]
