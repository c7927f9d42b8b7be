"""The replay store: a DuckDB index over a run's published facts, and the live buffer in it.

The Parquet files are the truth; the database holds their scalars and can be deleted and built again. It has
neither indexes nor primary keys. DuckDB lets no second process open a file that one writes to, so the trainer
has it for itself while it runs, and everybody else reads the facts (`sql_views`, `Store.publish_views`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from reval_core.atomic_files import publish_file
from reval_core.errors import CorruptData, RevalError
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS, Manifest, TableFile

_TYPES = {
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "REAL",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("ms", tz="UTC"): "TIMESTAMPTZ",
    pa.list_(pa.int32()): "INTEGER[]",
    pa.list_(pa.float32()): "REAL[]",
    pa.list_(pa.bool_()): "BOOLEAN[]",
    pa.map_(pa.string(), pa.float64()): "MAP(VARCHAR, DOUBLE)",
}

# Texts stay in the shards with the tokens: they would be most of the database.
_TEXTS = {"problem", "gold", "problem_set", "gold_mode", "prompt", "response"}

# A draw reads a row here and a row there. Of an uncompressed column those are read alone, of a compressed one the
# 2,048 rows around each.
_BUFFER = """
    CREATE TABLE IF NOT EXISTS buffer (
        trajectory_id BIGINT USING COMPRESSION uncompressed,
        round INTEGER USING COMPRESSION uncompressed,
        shard INTEGER USING COMPRESSION uncompressed,
        row INTEGER USING COMPRESSION uncompressed,
        shard_digest VARCHAR,
        reward REAL USING COMPRESSION uncompressed,
        advantage REAL USING COMPRESSION uncompressed,
        reference VARCHAR,
        log_ref REAL USING COMPRESSION uncompressed,
        value_ref REAL USING COMPRESSION uncompressed,
        delta REAL USING COMPRESSION uncompressed
    )
"""

# What is in the database already. A file's place counts from 0 within its manifest: a shard's number.
_PUBLISHED = """
    CREATE TABLE IF NOT EXISTS published (
        stage VARCHAR, round INTEGER, place INTEGER, "table" VARCHAR, path VARCHAR, content VARCHAR
    )
"""

_HELD = "SELECT place FROM published WHERE stage = $stage AND round = $round"

_ENTER_BUFFER = """
    INSERT INTO buffer
    SELECT t.trajectory_id, t.round, t.shard, t.row, p.content, v.reward, v.advantage,
           s.reference, s.log_ref, s.value_ref, s.delta
    FROM trajectories t
    JOIN verdicts v USING (trajectory_id)
    JOIN scores s USING (trajectory_id)
    JOIN published p ON p."table" = 'trajectories' AND p.round = t.round AND p.place = t.shard
    WHERE t.round = $round AND s.round = $round AND v.reward IS NOT NULL AND v.replaced IS NOT TRUE
    ORDER BY t.trajectory_id
"""

# A sort of the few oldest; the buffer as a whole is never sorted.
_EVICT = """
    DELETE FROM buffer WHERE trajectory_id <= (
        SELECT max(trajectory_id) FROM (
            SELECT trajectory_id FROM buffer ORDER BY trajectory_id LIMIT $surplus
        )
    )
"""

_EVICT_OLDER = "DELETE FROM buffer WHERE round < $oldest"

# Of several updates in a round the last one's residual counts.
_REFRESH_PRIORITIES = """
    UPDATE buffer SET delta = fresh.delta
    FROM (
        SELECT trajectory_id, arg_max(delta, "update") AS delta
        FROM residuals WHERE round = $round GROUP BY trajectory_id
    ) AS fresh
    WHERE buffer.trajectory_id = fresh.trajectory_id
"""

_CHANGE_REFERENCE = """
    UPDATE buffer SET reference = s.reference, log_ref = s.log_ref, value_ref = s.value_ref, delta = s.delta
    FROM scores s
    WHERE s.round = $round AND s.reference = $reference AND buffer.trajectory_id = s.trajectory_id
"""

# A view over other views. Ages are grouped by their number of binary digits: 0, 1, 2 to 3, 4 to 7, …
_OFF_POLICY = """
    CREATE VIEW off_policy AS
    WITH drawn AS (
        SELECT
            d.round, if(d.staleness = 0, 0, 1 << (length(bin(d.staleness)) - 1))::INTEGER AS age,
            abs(r.delta)::DOUBLE AS delta_abs, r.writer_log_ratio::DOUBLE AS log_ratio
        FROM draws d
        JOIN residuals r USING (round, "update", trajectory_id)
    ),
    weighted AS (
        SELECT *, exp(log_ratio - max(log_ratio) OVER (PARTITION BY round, age)) AS weight
        FROM drawn
    )
    SELECT
        round, age, count(*)::INTEGER AS draws, avg(delta_abs) AS delta_abs,
        quantile_cont(log_ratio, 0.05) AS q05, quantile_cont(log_ratio, 0.25) AS q25,
        quantile_cont(log_ratio, 0.5) AS q50, quantile_cont(log_ratio, 0.75) AS q75,
        quantile_cont(log_ratio, 0.95) AS q95,
        sum(weight) ** 2 / (count(weight) * sum(weight ** 2)) AS ess
    FROM weighted
    GROUP BY round, age
    ORDER BY round, age
"""

_PATIENCE_SECONDS = 30.0
"""How long a run waits for somebody who reads the database."""


class Store:
    """The database of one run.

    `capacity` is M, the size of the live buffer; `max_age`, if given, the rounds that a trajectory stays in it.
    """

    # hive_partitioning is off wherever Parquet is read: `round=00001` in a path would become a text column `round`.

    def __init__(self, directory: Path, database: Path, capacity: int, max_age: int | None = None) -> None:
        self._directory = directory
        self._database = database
        self._capacity = capacity
        self._max_age = max_age
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._viewed: list[tuple[str, str]] | None = None
        """The files that `publish_views` listed last."""

    def close(self) -> None:
        """Let go of the database. It is opened again when it is needed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def build(self, manifests: Iterable[Manifest]) -> None:
        """Make the database hold exactly what these manifests list, in their order.

        A database that holds something else is thrown away first.
        """
        manifests = list(manifests)
        listed = {
            (manifest.stage, manifest.round, place): file
            for manifest in manifests
            for place, file in enumerate(manifest.files)
        }
        if self._database.exists() and not self._agrees(listed):
            self.close()
            _delete_database(self._database)
        connection = self._open()
        for table in SCHEMAS:
            columns = ", ".join(f'"{name}" {kind}' for name, kind in scalar_columns(table))
            connection.execute(f'CREATE TABLE IF NOT EXISTS "{table}" ({columns})')
        connection.execute(_BUFFER)
        connection.execute(_PUBLISHED)
        for manifest in manifests:
            self.ingest(manifest)

    def ingest(self, manifest: Manifest) -> None:
        """Take a stage's published files in, in one transaction. What is in already is left as it is."""
        with self._transaction() as connection:
            held = connection.execute(_HELD, {"stage": manifest.stage, "round": manifest.round}).fetchall()
            known = {place for (place,) in held}
            new = [(place, file) for place, file in enumerate(manifest.files) if place not in known]
            # Of a pruned run a file holds many rounds, and stands for several files of each.
            for path, table in dict.fromkeys((file.path, file.table) for _, file in new):
                names = ", ".join(f'"{name}"' for name, _ in scalar_columns(table))
                connection.execute(
                    f'INSERT INTO "{table}" SELECT {names} '
                    "FROM read_parquet($path, hive_partitioning = false) WHERE round = $round",
                    {"path": _literal(str(self._directory / path)), "round": manifest.round},
                )
            for place, file in new:
                connection.execute(
                    "INSERT INTO published VALUES (?, ?, ?, ?, ?, ?)",
                    [manifest.stage, manifest.round, place, file.table, file.path, file.content],
                )
            if new:
                self._refresh_buffer(connection, manifest)

    def query(self, sql: str, **parameters: Any) -> pa.Table:
        """The rows that a query gives."""
        return self._open().sql(sql, params=parameters or None).to_arrow_table()

    def publish_views(self, path: Path) -> None:
        """Publish a small database with one view a table over the files that have been taken in, for readers.

        It is a new file each time and never written in place, so no reader can hold the trainer up, or the
        trainer a reader. The views name the files by absolute paths. Nothing is done where nothing has come in
        since the last time.
        """
        held = self._open().execute('SELECT "table", path FROM published ORDER BY round, path').fetchall()
        if held != self._viewed:
            publish_file(path, lambda partial: self._write_views(partial, held))
            self._viewed = held

    def _write_views(self, path: Path, listed: list[tuple[str, str]]) -> None:
        _delete_database(path)  # what a process that was killed has left
        with duckdb.connect() as connection:
            # A file that DuckDB 1.5 can open as well.
            connection.execute(f"ATTACH {_quoted(str(path))} AS tables (STORAGE_VERSION 'v1.5.0')")
            connection.execute("USE tables")
            connection.begin()
            _create_views(connection, self._directory, listed)
            connection.commit()
            connection.execute("USE memory")
            connection.execute("DETACH tables")

    def _refresh_buffer(self, connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> None:
        if manifest.stage == "consistency":
            connection.execute(_ENTER_BUFFER, {"round": manifest.round})
            [(live,)] = connection.execute("SELECT count(*) FROM buffer").fetchall()
            connection.execute(_EVICT, {"surplus": max(0, live - self._capacity)})
            if self._max_age is not None:
                connection.execute(_EVICT_OLDER, {"oldest": manifest.round - self._max_age})
        elif manifest.stage == "learning":
            connection.execute(_REFRESH_PRIORITIES, {"round": manifest.round})
        elif manifest.stage == "reference_reset":
            parameters = {"round": manifest.round, "reference": manifest.info["reference"]}
            connection.execute(_CHANGE_REFERENCE, parameters)

    def _agrees(self, listed: dict[tuple[str, int, int], TableFile]) -> bool:
        """Whether the database can be read and holds nothing but what is listed, once; it may hold less."""
        try:
            held = self._open().execute("SELECT stage, round, place, path, content FROM published").fetchall()
            rows = {table: self._count(table) for table in SCHEMAS}
            self._count("buffer")
        except duckdb.Error:
            return False
        expected = dict.fromkeys(SCHEMAS, 0)
        for stage, round, place, path, content in held:
            file = listed.get((stage, round, place))
            if file is None or (file.path, file.content) != (path, content):
                return False
            expected[file.table] += file.rows
        return rows == expected

    def _count(self, table: str) -> int:
        """The rows of a table, of which every column is read: DuckDB notices damage only where it reads."""
        found = self._open().execute(f'SELECT count(*), bit_xor(hash(t)) FROM "{table}" t').fetchone()
        assert found is not None
        rows: int = found[0]
        return rows

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = self._open()
        connection.begin()
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()

    def _open(self) -> duckdb.DuckDBPyConnection:
        """The connection to the database. Raises RevalError if another process keeps it open."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._connection is None:
            try:
                self._connection = duckdb.connect(self._database)
            except duckdb.IOException as error:
                if "Could not set lock" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise RevalError(
                        f"{self._database}: another process has it open; close it ({error})"
                    ) from error
                time.sleep(0.05)
        return self._connection


def rebuild_store(directory: RunDirectory, capacity: int, max_age: int | None) -> dict[str, int]:
    """Make a run's database and its views again from its published facts, and tell how many rows each table has."""
    _delete_database(directory.database)
    store = Store(directory.path, directory.database, capacity, max_age)
    store.build(directory.manifests())
    store.publish_views(directory.tables)
    counts = {table: store.query(f'SELECT count(*) AS rows FROM "{table}"') for table in (*SCHEMAS, "buffer")}
    store.close()
    return {table: count.column("rows")[0].as_py() for table, count in counts.items()}


def _delete_database(path: Path) -> None:
    """Delete a database that nobody has open, with the log of what it had not yet taken in."""
    for file in (path, path.with_name(path.name + ".wal")):
        file.unlink(missing_ok=True)


def stages_held(database: Path) -> set[tuple[str, int]]:
    """The stages and rounds whose files a database has taken in. Raises duckdb.Error if it is damaged."""
    with duckdb.connect(database, read_only=True) as connection:
        return set(connection.execute("SELECT stage, round FROM published").fetchall())


def tables_differing(one: Path, other: Path) -> list[str]:
    """The tables whose rows are not the same in two databases. Raises duckdb.Error if one is damaged."""
    with duckdb.connect() as connection:
        for name, path in (("one", one), ("other", other)):
            connection.execute(f"ATTACH {_quoted(str(path))} AS {name} (READ_ONLY)")
        return [table for table in (*SCHEMAS, "buffer", "published") if _differ(connection, table)]


def _differ(connection: duckdb.DuckDBPyConnection, table: str) -> bool:
    def extra(one: str, other: str) -> str:
        return f'SELECT 1 FROM (SELECT * FROM {one}."{table}" EXCEPT ALL SELECT * FROM {other}."{table}")'

    query = f"{extra('one', 'other')} UNION ALL {extra('other', 'one')} LIMIT 1"
    return connection.execute(query).fetchone() is not None


def scalar_columns(table: str) -> list[tuple[str, str]]:
    """The columns of a table that the database holds, with their DuckDB types."""
    schema = SCHEMAS[table]
    return [
        (name, _TYPES[kind])
        for name, kind in zip(schema.names, schema.types, strict=True)
        if not pa.types.is_list(kind) and not (table in ("trajectories", "partials") and name in _TEXTS)
    ]


def sql_views(directory: Path, manifests: Iterable[Manifest]) -> duckdb.DuckDBPyConnection:
    """An in-memory database with one view a table, over all that a run has published so far.

    It reads the Parquet files themselves, so it neither waits for a running trainer nor holds one up.
    """
    listed = [(file.table, file.path) for manifest in manifests for file in manifest.files]
    connection = duckdb.connect()
    _create_views(connection, directory, listed)
    return connection


def _create_views(
    connection: duckdb.DuckDBPyConnection, directory: Path, listed: Iterable[tuple[str, str]]
) -> None:
    """A view a table over these files, given by table and path, and `off_policy` over those.

    Raises Damaged if a file cannot be read.
    """
    paths: dict[str, list[str]] = {table: [] for table in SCHEMAS}
    for table, path in listed:
        paths[table].append(str(directory.absolute() / path))
    for table, schema in SCHEMAS.items():
        try:
            connection.execute(f'CREATE VIEW "{table}" AS {_view(schema, paths[table])}')
        except duckdb.Error as error:
            raise CorruptData(
                f"{directory}: a file of {table} cannot be read ({str(error).splitlines()[0]})"
            ) from error
    connection.execute(_OFF_POLICY)


def _view(schema: pa.Schema, paths: Sequence[str]) -> str:
    if paths:
        there = _columns(paths[0]) or schema.names
        names = ", ".join(
            f'"{name}"' if name in there else f'NULL::{_TYPES[kind]} AS "{name}"'
            for name, kind in zip(schema.names, schema.types, strict=True)
        )
        listed = ", ".join(_quoted(_literal(path)) for path in dict.fromkeys(paths))
        return f"SELECT {names} FROM read_parquet([{listed}], hive_partitioning = false)"
    typed = zip(schema.names, schema.types, strict=True)
    return "SELECT " + ", ".join(f'NULL::{_TYPES[kind]} AS "{name}"' for name, kind in typed) + " WHERE false"


def _literal(path: str) -> str:
    """A path for DuckDB's readers of files, to which `*`, `?` and `[` are patterns."""
    return re.sub(r"[*?[]", r"[\g<0>]", path)


def _columns(path: str) -> list[str]:
    """The columns of a file, of which an earlier version wrote fewer; none where DuckDB will say what is wrong."""
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return []


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "''") + "'"
