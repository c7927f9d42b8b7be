"""`tables.duckdb`: what readers may open during training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from reval_core.errors import CorruptData
from reval_core.replay_buffer.index import Store, sql_views
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS
from tests.facts import hand_made_run
from tests.integration.process_tables import ROWS

ROUNDS = 20


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "it's a [run]*")
    hand_made_run(directory)
    return directory


def store_of(directory: RunDirectory) -> Store:
    store = Store(directory.path, directory.database, capacity=100)
    store.build(directory.manifests())
    return store


def test_a_reader_and_a_trainer_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Each reader finds complete rounds, never fewer than before, and the trainer finishes."""
    directory = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "tests.integration.process_tables", str(directory.path), str(ROUNDS)]
    trainer = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    seen = [0]
    while seen[-1] < ROUNDS:
        state = trainer.poll()
        if directory.tables.exists():
            with duckdb.connect(directory.tables, read_only=True) as reader:
                rounds = reader.execute("SELECT round FROM rounds ORDER BY round").fetchall()
                verdicts = reader.execute("SELECT round, count(*) FROM verdicts GROUP BY round").fetchall()
            assert [round for (round,) in rounds] == list(range(1, len(rounds) + 1))
            assert sorted(verdicts) == [(round, ROWS) for (round,) in rounds]
            assert len(rounds) >= seen[-1]
            seen.append(len(rounds))
        assert state is None or seen[-1] == ROUNDS, "the trainer finished without its last round"
    assert trainer.wait() == 0
    assert len(set(seen)) > 2, "the reader opened the file too rarely to overlap with the trainer"


def test_an_open_reader_keeps_what_it_opened(directory: RunDirectory) -> None:
    store = store_of(directory)
    store.publish_views(directory.tables)
    with duckdb.connect(directory.tables, read_only=True) as reader:
        opened = directory.tables.stat()
        before = reader.execute("SELECT count(*) FROM rounds").fetchall()
        store_of(directory).publish_views(directory.tables)
        assert directory.tables.stat().st_ino != opened.st_ino
        assert reader.execute("SELECT count(*) FROM rounds").fetchall() == before
    store.close()


def test_the_views_are_those_of_reval_sql(directory: RunDirectory) -> None:
    """Texts and lists included, from a directory whose name is full of quotes and wildcards."""
    store = store_of(directory)
    store.publish_views(directory.tables)
    with (
        sql_views(directory.path, directory.manifests()) as ours,
        duckdb.connect(directory.tables, read_only=True) as plain,
    ):
        for table in SCHEMAS:
            query = f'SELECT * FROM "{table}" ORDER BY ALL'
            assert plain.execute(query).fetchall() == ours.execute(query).fetchall()
    store.close()


def test_a_new_file_is_published_only_after_new_rows(directory: RunDirectory) -> None:
    store = store_of(directory)
    store.publish_views(directory.tables)
    first = directory.tables.stat()
    store.publish_views(directory.tables)
    assert directory.tables.stat().st_ino == first.st_ino
    store.close()


def test_leftovers_of_a_killed_process_are_ignored(directory: RunDirectory) -> None:
    for name in ("tables.duckdb.partial", "tables.duckdb.partial.wal"):
        (directory.path / name).write_bytes(b"half a database")
    store = store_of(directory)
    store.publish_views(directory.tables)
    store.close()
    with duckdb.connect(directory.tables, read_only=True) as reader:
        assert reader.execute("SELECT round FROM rounds ORDER BY round").fetchall() == [(1,), (2,)]
    assert sorted(path.name for path in directory.path.glob("tables*")) == ["tables.duckdb"]


def test_a_corrupt_file_is_named_and_the_old_views_stay(directory: RunDirectory) -> None:
    store = store_of(directory)
    store.publish_views(directory.tables)
    store.close()
    before = directory.tables.read_bytes()
    (directory.path / directory.facts(1, "rounds")).write_bytes(b"no Parquet")
    with pytest.raises(CorruptData, match="a file of rounds cannot be read"):
        store_of(directory).publish_views(directory.tables)
    assert directory.tables.read_bytes() == before
