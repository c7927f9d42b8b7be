"""`reval sql`: one query on a run's tables, which can neither write nor read anything else."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval.flows.terminal import print_csv, print_json, print_rows
from reval_core.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, Statement
    from pandas import DataFrame

    from reval_core.storage.tables import Manifest


class QueryError(InputError):
    """A rejected query; the message keeps DuckDB's lines that show where."""


def show_query(run: Path, query: str, form: str) -> None:
    """Print the rows of a query over a run's tables, as a table, as `json` or as `csv`.

    Raises QueryError for anything but one SELECT, and for what DuckDB refuses.
    """
    import duckdb

    from reval_core.evaluation.directory import published_tables

    with locked_views(run, published_tables(run)) as connection:
        try:
            names, rows = _answer(connection, _one_select(connection, query))
        # A date after the year 9999 is a ValueError, a text that is not UTF-8 a UnicodeDecodeError.
        except (duckdb.Error, ValueError, OverflowError) as error:
            raise QueryError(f"the query failed: {error}") from error
    try:
        _print(names, rows, form)
    except RecursionError as error:
        raise QueryError("the query failed: its values are nested too deep to print") from error


def _answer(connection: DuckDBPyConnection, statement: Statement) -> tuple[list[str], list[Any]]:
    """The columns and rows of a statement. Ctrl-C interrupts it, which DuckDB alone would not notice."""

    def execute() -> list[Any]:
        return connection.execute(statement).fetchall()

    with ThreadPoolExecutor(max_workers=1) as thread:
        pending = thread.submit(execute)
        try:
            rows = pending.result()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one does not wait
            connection.interrupt()
            raise
    return _apart(column[0] for column in connection.description or ()), rows


def _print(names: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> None:
    if form == "json":
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif form == "csv":
        print_csv(names, rows)
    else:
        print_rows(names, rows)


@contextmanager
def locked_views(run: Path, manifests: Iterable[Manifest]) -> Iterator[DuckDBPyConnection]:
    """The views of a run's tables in a database that can only read their files."""
    from reval_core.replay_buffer.index import sql_views

    manifests = list(manifests)
    files = [run.absolute() / file.path for manifest in manifests for file in manifest.files]
    with sql_views(run, manifests) as connection, tempfile.TemporaryDirectory(prefix="reval-sql-") as spilled:
        for setting, value in (
            ("temp_directory", spilled),  # spill files; the default is the current directory
            ("allowed_paths", [str(file) for file in files]),
            ("enable_external_access", False),
            ("python_enable_replacements", False),  # variables of this process are not tables
            ("autoinstall_known_extensions", False),
            ("autoload_known_extensions", False),
            ("lock_configuration", True),
        ):
            connection.execute(f"SET {setting} = $value", {"value": value})
        yield connection


def _one_select(connection: DuckDBPyConnection, query: str) -> Statement:
    """The statement of a query: exactly one SELECT. DuckDB's settings alone would allow ATTACH of the files."""
    import duckdb

    try:
        text = os.fsencode(query).decode("utf-8")  # in a C locale Python decodes only ASCII
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise QueryError(f"the query failed: it is not UTF-8 ({error.reason})") from error
    statements = connection.extract_statements(text)
    if len(statements) != 1:
        raise QueryError(f"the query failed: it must be one SELECT, and this is {len(statements)} statements")
    try:
        kind = statements[0].type
    except ValueError:  # one that DuckDB's Python interface has no name for
        kind = None
    if kind != duckdb.StatementType.SELECT:
        name = {None: "this", duckdb.StatementType.MULTI: "PIVOT without IN (…)"}.get(kind, kind and kind.name)
        raise QueryError(f"the query failed: it must be a SELECT, not {name}")
    return statements[0]


def _apart(names: Iterable[str]) -> list[str]:
    """The column names made unique: `count`, `count_1`, `count_2`."""
    found: list[str] = []
    given = list(names)
    for name in given:
        number, new = 0, name
        while new in found or (number and new in given):
            number += 1
            new = f"{name}_{number}"
        found.append(new)
    return found


def query_frame(run: Path, query: str) -> DataFrame:
    """The rows of a query over a run's tables as a DataFrame, under the restrictions of `show_query`.

    Raises:
        QueryError: The query is not one SELECT, or DuckDB rejects it.
    """
    import duckdb

    from reval_core.evaluation.directory import published_tables

    with locked_views(run, published_tables(run)) as connection, ThreadPoolExecutor(max_workers=1) as thread:
        try:
            statement = _one_select(connection, query)
            pending = thread.submit(lambda: connection.execute(statement).df())
            return pending.result()
        except KeyboardInterrupt:  # which DuckDB alone would not notice
            connection.interrupt()
            raise
        except (duckdb.Error, ValueError, OverflowError) as error:
            raise QueryError(f"the query failed: {error}") from error
