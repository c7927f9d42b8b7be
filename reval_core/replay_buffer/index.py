"""A DuckDB index over a run's published tables, which contains the live replay buffer.

The Parquet files are authoritative; the database holds their scalar columns and can be deleted and rebuilt. It has
neither indexes nor primary keys. DuckDB does not allow a second process to open a database that is being written,
so the trainer has exclusive access while it runs, and all readers use the Parquet files (`sql_views`,
`Store.publish_views`).
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

# Texts stay in the shards, like the tokens: they would make up most of the database.
_TEXTS = {"problem", "gold", "problem_set", "gold_mode", "prompt", "response"}

# A draw reads scattered rows. From an uncompressed column only these rows are read, from a compressed one the 2,048
# rows around each.
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

# The files that the database has ingested. `place` is the index of a file in its manifest: the shard's number.
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

# Sorts only the oldest few; the whole buffer is never sorted.
_EVICT = """
    DELETE FROM buffer WHERE trajectory_id <= (
        SELECT max(trajectory_id) FROM (
            SELECT trajectory_id FROM buffer ORDER BY trajectory_id LIMIT $surplus
        )
    )
"""

_EVICT_OLDER = "DELETE FROM buffer WHERE round < $oldest"

# If a trajectory was fed to several updates of a round, the residual of the last one counts.
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

# A view over other views. Ages are binned by their number of binary digits: 0, 1, 2 to 3, 4 to 7, …
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

_OPEN_TIMEOUT_SECONDS = 30.0
"""How long a run waits for another process that has the database open."""


class Store:
    """The database of one run.

    Args:
        directory: The run directory, which the paths in manifests are relative to.
        database: The path of the database.
        capacity: M, the size of the live buffer in trajectories.
        max_age: The number of rounds after which a trajectory is evicted; None for no limit.
    """

    # hive_partitioning is off wherever Parquet is read: `round=00001` in a path would become a text column `round`.

    def __init__(self, directory: Path, database: Path, capacity: int, max_age: int | None = None) -> None:
        self._directory = directory
        self._database = database
        self._capacity = capacity
        self._max_age = max_age
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._viewed: list[tuple[str, str]] | None = None
        """The files in the views that `publish_views` published last."""

    def close(self) -> None:
        """Close the connection. It is reopened on demand."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def build(self, manifests: Iterable[Manifest]) -> None:
        """Make the database contain exactly the files of these manifests, ingested in their order.

        A database with other contents is deleted first.
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
        """Ingest a stage's published files in one transaction. Files that were ingested before are skipped."""
        with self._transaction() as connection:
            held = connection.execute(_HELD, {"stage": manifest.stage, "round": manifest.round}).fetchall()
            known = {place for (place,) in held}
            new = [(place, file) for place, file in enumerate(manifest.files) if place not in known]
            # In a pruned run one file contains many rounds, and replaces several files of each.
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
        """Run a query and return its rows."""
        return self._open().sql(sql, params=parameters or None).to_arrow_table()

    def publish_views(self, path: Path) -> None:
        """Publish a small database for readers, with one view per table over the ingested files.

        It is replaced by a new file and never written in place, so readers and the trainer do not block each other.
        The views refer to the files by absolute paths. Does nothing if no file was ingested since the last call.
        """
        held = self._open().execute('SELECT "table", path FROM published ORDER BY round, path').fetchall()
        if held != self._viewed:
            publish_file(path, lambda partial: self._write_views(partial, held))
            self._viewed = held

    def _write_views(self, path: Path, listed: list[tuple[str, str]]) -> None:
        _delete_database(path)  # left by a killed process
        with duckdb.connect() as connection:
            # So that DuckDB 1.5 can open the file, too.
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
        """Whether the database is readable and contains only listed files, each once; some may be missing."""
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
        """The number of rows of a table. Reads all columns: DuckDB detects corruption only in what it reads."""
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
        """The connection to the database. Raises RevalError if another process has it open."""
        deadline = time.monotonic() + _OPEN_TIMEOUT_SECONDS
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
    """Rebuild a run's database and its views from the published tables. Returns the number of rows per table."""
    _delete_database(directory.database)
    store = Store(directory.path, directory.database, capacity, max_age)
    store.build(directory.manifests())
    store.publish_views(directory.tables)
    counts = {table: store.query(f'SELECT count(*) AS rows FROM "{table}"') for table in (*SCHEMAS, "buffer")}
    store.close()
    return {table: count.column("rows")[0].as_py() for table, count in counts.items()}


def _delete_database(path: Path) -> None:
    """Delete a database that no process has open, together with its write-ahead log."""
    for file in (path, path.with_name(path.name + ".wal")):
        file.unlink(missing_ok=True)


def stages_held(database: Path) -> set[tuple[str, int]]:
    """The stages and rounds whose files a database has ingested. Raises duckdb.Error if it is corrupt."""
    with duckdb.connect(database, read_only=True) as connection:
        return set(connection.execute("SELECT stage, round FROM published").fetchall())


def tables_differing(one: Path, other: Path) -> list[str]:
    """The tables whose rows differ between two databases. Raises duckdb.Error if one is corrupt."""
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
    """The columns of a table that are stored in the database, with their DuckDB types."""
    schema = SCHEMAS[table]
    return [
        (name, _TYPES[kind])
        for name, kind in zip(schema.names, schema.types, strict=True)
        if not pa.types.is_list(kind) and not (table in ("trajectories", "partials") and name in _TEXTS)
    ]


def sql_views(directory: Path, manifests: Iterable[Manifest]) -> duckdb.DuckDBPyConnection:
    """An in-memory database with one view per table, over everything that a run has published so far.

    It reads the Parquet files directly, so it neither waits for a running trainer nor blocks it.
    """
    listed = [(file.table, file.path) for manifest in manifests for file in manifest.files]
    connection = duckdb.connect()
    _create_views(connection, directory, listed)
    return connection


def _create_views(
    connection: duckdb.DuckDBPyConnection, directory: Path, listed: Iterable[tuple[str, str]]
) -> None:
    """Create one view per table over these files, given by table and path, and `off_policy` over these views.

    Raises CorruptData if a file cannot be read.
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
        present = _columns(paths[0]) or schema.names
        names = ", ".join(
            f'"{name}"' if name in present else f'NULL::{_TYPES[kind]} AS "{name}"'
            for name, kind in zip(schema.names, schema.types, strict=True)
        )
        listed = ", ".join(_quoted(_literal(path)) for path in dict.fromkeys(paths))
        return f"SELECT {names} FROM read_parquet([{listed}], hive_partitioning = false)"
    typed = zip(schema.names, schema.types, strict=True)
    return "SELECT " + ", ".join(f'NULL::{_TYPES[kind]} AS "{name}"' for name, kind in typed) + " WHERE false"


def _literal(path: str) -> str:
    """A path escaped for DuckDB's file readers, which treat `*`, `?` and `[` as patterns."""
    return re.sub(r"[*?[]", r"[\g<0>]", path)


def _columns(path: str) -> list[str]:
    """The columns of a file (earlier versions wrote fewer); empty if unreadable, which DuckDB then reports."""
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return []


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "''") + "'"
