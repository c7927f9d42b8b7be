"""`reval sql`: queries of the tables of a run, which neither write nor read anything else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from reval.flows import querying
from reval.flows.querying import QueryError, show_query
from reval_core.errors import InputError
from reval_core.storage.run_directory import RunDirectory
from tests.facts import hand_made_run

Ask = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "run"
    hand_made_run(RunDirectory(path))
    (path.parent / "secret.csv").write_text("secret\n42\n")
    return path


@pytest.fixture
def ask(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setenv("COLUMNS", "100")

    def command(query: str, form: str = "table") -> str:
        show_query(run, query.format(run=run, beside=run.parent), form)
        return capsys.readouterr().out

    return command


FORBIDDEN = [
    "COPY (SELECT 1) TO '{run}/new.csv'",
    "COPY verdicts TO '{beside}/new.parquet'",
    "EXPORT DATABASE '{beside}/new'",
    "ATTACH '{beside}/new.duckdb' AS other",
    "ATTACH '{run}/config.yaml' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "UPDATE EXTENSIONS",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "CREATE TABLE mine AS SELECT 1",
    "CREATE OR REPLACE VIEW rounds AS SELECT 1",
    "INSERT INTO rounds SELECT * FROM rounds",
    "DROP VIEW rounds",
    "USE memory",
    "BEGIN",
    "CHECKPOINT",
    "PREPARE one AS SELECT 1",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT 1; COPY (SELECT 1) TO '{run}/new.csv'",
    "SELECT 1; SELECT 2",
    "",
    "-- nothing",
    "PIVOT rounds ON round",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{run}/new.csv''')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv('{beside}/secret.csv')",
    "SELECT * FROM read_csv('{run}/../secret.csv')",
    "SELECT * FROM read_text('{run}/config.yaml')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_json('{beside}/*.json')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM glob('{run}/*')",
    "SELECT * FROM sniff_csv('{beside}/secret.csv')",
    "FROM '{beside}/secret.csv'",
    "FROM 'https://example.com/secret.parquet'",
    "SELECT * FROM parquet_metadata('{beside}/secret.csv')",
    "SELECT getenv('HOME')",
    "SELECT * FROM names",  # a variable of this process
    "SELECT * FROM enable_logging(storage = 'file', storage_config = {{'path': '{beside}/log'}})",
    "WITH made AS (COPY (SELECT 1) TO '{run}/new.csv') SELECT 1",
    "\ud800",
]


@pytest.mark.parametrize("query", FORBIDDEN)
def test_queries_that_write_or_read_other_files_are_refused(ask: Ask, run: Path, query: str) -> None:
    names = [1, 2]  # noqa: F841
    before = sorted(run.parent.rglob("*"))
    with pytest.raises(QueryError, match="the query failed: "):
        ask(query)
    assert sorted(run.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "query",
    [
        "FROM verdicts",
        "TABLE verdicts",
        "SHOW TABLES",
        "DESCRIBE verdicts",
        "SUMMARIZE verdicts",
        "WITH one AS (SELECT 1) SELECT * FROM one;",
        "VALUES (1)",
        "PIVOT (SELECT 1 AS a, 2 AS b) ON a IN (1) USING sum(b)",
        "SELECT count(*) FROM trajectories JOIN verdicts USING (trajectory_id) -- all",
        "SELECT * FROM verdicts ORDER BY random()",
    ],
)
def test_a_query_is_answered(ask: Ask, query: str) -> None:
    assert json.loads(ask(query, "json"))


def test_a_link_out_of_the_run_directory_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    hand_made_run(RunDirectory(path))
    show_query(path, "SELECT 1", "table")
    table = next(path.rglob("*.parquet"))
    table.rename(tmp_path / "elsewhere.parquet")
    table.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(InputError, match="is a symbolic link"):
        show_query(path, "SELECT 1", "table")


def test_the_place_of_an_error_is_shown(ask: Ask) -> None:
    with pytest.raises(QueryError) as failed:
        ask("SELECT nothing FROM verdicts")
    lines = str(failed.value).splitlines()
    assert "nothing" in lines[0]
    assert lines[-2:] == ["LINE 1: SELECT nothing FROM verdicts", "               ^^^^^^^"]


AWKWARD = (
    "SELECT 1 AS a, 2 AS a, 3 AS a_1, 'nan'::DOUBLE AS x, [1.5, 'inf'::DOUBLE] AS y, {{'k': '-inf'::FLOAT}} AS z, "
    "MAP {{1: [NULL]}} AS m, MAP {{DATE '2026-01-02': 'nan'::FLOAT}} AS n, 1.50::DECIMAL(5, 2) AS d, "
    "'\\xff'::BLOB AS b, 170141183460469231731687303715884105727 AS h, TIMESTAMP '290000-01-01' AS t, "
    "INTERVAL 1 MONTH AS i, chr(27) || '[31m' AS e, chr(8238) AS r, DATE 'infinity' AS f, chr(917569) AS tag"
)


def test_json_of_awkward_values_is_json(ask: Ask) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    text = ask(AWKWARD, "json")
    (row,) = json.loads(text, parse_constant=refuse)
    assert (row["a"], row["a_2"], row["a_1"]) == (1, 2, 3)
    assert (row["x"], row["y"], row["z"]) == (None, [1.5, None], {"k": None})
    assert (row["m"], row["n"]) == ({"1": [None]}, {"2026-01-02": None})
    assert (row["d"], row["b"], row["h"]) == ("1.50", "ff", 2**127 - 1)
    assert (row["e"], row["r"], row["tag"]) == ("\x1b[31m", "\u202e", "\U000e0041"), "a parser reads what was there"
    assert text.isprintable() or text.replace("\n", "").isprintable()


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_no_terminal_control_characters_are_printed(ask: Ask, form: str) -> None:
    acting = (
        "".join(f"chr({code}) || " for code in (7, 8, 13, 27, 127, 155, 8206, 8238, 8294, 65279, 917569)) + "'x'"
    )
    shown = ask(f'SELECT {acting} AS "\x1b]0;title\x07[/bold]\u202e"', form)
    assert shown.replace("\n", "").isprintable()
    assert "[/bold]" in shown


@pytest.mark.parametrize("name", ["a\nb", "[/]", "[bold", "", ":smile:", "x" * 500, "a,b", '"" ', "\t", "é\u0301"])
def test_a_column_name_cannot_break_a_table(ask: Ask, name: str) -> None:
    query = f'SELECT 7 AS "{name.replace(chr(34), chr(34) * 2)}", 8 AS other' if name else "SELECT 7, 8 AS other"
    table = ask(query)
    assert max(map(len, table.splitlines())) <= 100
    assert "7" in table.splitlines()[-2]
    (names, values) = csv.reader(io.StringIO(ask(query, "csv")))
    assert (len(names), values) == (2, ["7", "8"])
    assert list(json.loads(ask(query, "json"))[0].values()) == [7, 8]


def test_a_row_of_many_columns_is_printed_as_a_block(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = ask("SELECT * FROM trajectories JOIN verdicts USING (trajectory_id) ORDER BY trajectory_id LIMIT 2")
    rows = json.loads(ask("SELECT * FROM trajectories JOIN verdicts USING (trajectory_id) LIMIT 1", "json"))
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines if line.startswith("row")] == [["row", "1"], ["row", "2"]]
    names = [line.split()[0] for line in lines[: lines.index("row 2")] if line.startswith("  ") and line[2] != " "]
    assert names == list(rows[0])


def test_markup_and_emoji_in_cells_are_text(ask: Ask) -> None:
    assert ":smile: [bold]x[/] [link=http://a]" in ask("SELECT ':smile: [bold]x[/] [link=http://a]' AS a")


def test_values_nested_too_deep_to_print_are_refused(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    nested: list[object] = []  # which would take DuckDB a minute to create
    for _ in range(2000):
        nested = [nested]
    monkeypatch.setattr(querying, "_answer", lambda connection, statement: (["a"], [(nested,)]))
    with pytest.raises(QueryError, match="nested too deep to print"):
        ask("SELECT 1 AS a", "json")


def test_columns_missing_in_an_earlier_version_are_null(ask: Ask, run: Path) -> None:
    file = next(run.glob("facts/*/verdicts.parquet"))
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(["milliseconds"]), file)
    rows = json.loads(ask("SELECT verdict, milliseconds FROM verdicts LIMIT 1", "json"))
    assert rows[0]["verdict"]
    assert rows[0]["milliseconds"] is None
