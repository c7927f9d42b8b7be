"""Tables: what is read equals what was published, and corruption is detected."""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reval_core.errors import CorruptData
from reval_core.storage.tables import (
    SCHEMA_VERSION,
    SCHEMAS,
    Manifest,
    TableFile,
    content_digest,
    publish_table,
    read_manifest,
    read_table,
    write_manifest,
)

CLOCKS = {"milliseconds", "seconds", "ended_at", "rollout_tokens_per_second", "learner_tokens_per_second"}
TABLES = list(SCHEMAS)

MANIFEST = Manifest(
    stage="learning",
    round=3,
    key="the key",
    files=(TableFile("updates", "facts/updates.parquet", 4, "bytes", "rows"), TableFile("draws", "d", 0, "b", "r")),
    seconds=1.5,
    ended_at=1.7e9,
    info={"policy": "β", "accuracy": 0.25, "best": None, "lists": [1, [2.5]]},
)


def is_clock(column: str) -> bool:
    return column in CLOCKS or column.endswith("_seconds")


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Values of an Arrow type, null among them."""
    if pa.types.is_map(kind):
        return st.none() | st.dictionaries(st.text(max_size=4), values(kind.item_type), max_size=3).map(
            lambda items: list(items.items())
        )
    if pa.types.is_list(kind):
        return st.none() | st.lists(values(kind.value_type), max_size=4)
    if pa.types.is_integer(kind):
        bound = 2 ** (kind.bit_width - 1)
        return st.none() | st.integers(-bound, bound - 1)
    if pa.types.is_floating(kind):
        return st.none() | st.floats(width=kind.bit_width, allow_nan=False)
    if pa.types.is_timestamp(kind):
        moments = st.datetimes(min_value=datetime.datetime(1970, 1, 1), timezones=st.just(datetime.UTC))
        return st.none() | moments.map(lambda moment: moment.replace(microsecond=0))
    return st.none() | {pa.string(): st.text(max_size=6), pa.bool_(): st.booleans()}[kind]


@st.composite
def tables(draw: st.DrawFn, table: str, rows: int) -> pa.Table:
    columns = {
        field.name: draw(st.lists(values(field.type), min_size=rows, max_size=rows)) for field in SCHEMAS[table]
    }
    return pa.table(columns, schema=SCHEMAS[table])


def plain(kind: pa.DataType, number: int) -> Any:
    """A value of an Arrow type that is different for each number."""
    if pa.types.is_map(kind):
        return [(f"name {place}", plain(kind.item_type, number + place)) for place in range(2)]
    if pa.types.is_list(kind):
        return [plain(kind.value_type, number + place) for place in range(3)]
    if pa.types.is_string(kind):
        return f"text {number}"
    if pa.types.is_boolean(kind):
        return number % 2 == 0
    return number / 4 if pa.types.is_floating(kind) else number


def example(table: str, rows: int = 5) -> pa.Table:
    """Some rows of a table. Every third value is null, in different rows for each column."""
    columns = {
        field.name: [None if (row + place) % 3 == 0 else plain(field.type, row) for row in range(rows)]
        for place, field in enumerate(SCHEMAS[table])
    }
    return pa.table(columns, schema=SCHEMAS[table])


def altered(rows: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = rows.column(column).to_pylist()
    assert values[row] != value
    values[row] = value
    place = rows.schema.get_field_index(column)
    return rows.set_column(place, rows.schema.field(place), pa.array(values, rows.schema.field(place).type))


@pytest.mark.parametrize("table", TABLES)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_published_rows_are_read_back_unchanged(tmp_path: Path, table: str, data: st.DataObject) -> None:
    rows = data.draw(tables(table, data.draw(st.integers(0, 4))))
    file = publish_table(tmp_path, "deep/some.parquet", table, rows)
    found = read_table(tmp_path / file.path)
    assert found.equals(rows)
    assert found.schema.equals(SCHEMAS[table])
    assert found.schema.metadata[b"reval.schema_version"] == SCHEMA_VERSION.encode()
    assert (file.table, file.path, file.rows) == (table, "deep/some.parquet", rows.num_rows)


def test_only_the_requested_columns_are_read_in_their_order(tmp_path: Path) -> None:
    publish_table(tmp_path, "some.parquet", "scores", example("scores"))
    found = read_table(tmp_path / "some.parquet", ("delta", "step_deltas", "round"))
    assert found.equals(example("scores").select(["delta", "step_deltas", "round"]))


def test_a_column_is_cast_to_the_type_of_the_schema(tmp_path: Path) -> None:
    rows = example("residuals")
    wide = rows.set_column(3, "delta", rows.column("delta").cast(pa.float64()))
    assert publish_table(tmp_path, "some.parquet", "residuals", wide).content == content_digest(rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.drop_columns(["delta"]),
        lambda rows: rows.append_column("more", rows.column("delta")),
        lambda rows: rows.rename_columns([*rows.column_names[:-1], "log_ration"]),
        lambda rows: rows.select(rows.column_names[::-1]),
        lambda rows: rows.set_column(3, "delta", pa.array(["many"] * rows.num_rows)),
        lambda rows: rows.set_column(0, "round", pa.array([2**40] * rows.num_rows)),
    ],
    ids=["one missing", "one more", "another name", "another order", "another type", "too large"],
)
def test_wrong_columns_are_refused_and_nothing_is_written(tmp_path: Path, change: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        publish_table(tmp_path, "some.parquet", "residuals", change(example("residuals")))
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("table", TABLES)
def test_a_content_digest_covers_every_value_except_times(table: str) -> None:
    rows = example(table)
    known = content_digest(rows)
    assert content_digest(example(table)) == known
    for field in SCHEMAS[table]:
        values = rows.column(field.name).to_pylist()
        empty, filled = values.index(None), next(row for row, value in enumerate(values) if value is not None)
        others = [(filled, None), (filled, plain(field.type, filled + 1)), (empty, plain(field.type, 0))]
        if pa.types.is_list(field.type):
            others += [(filled, []), (filled, values[filled][:-1]), (filled, [None, *values[filled][1:]])]
        for row, value in others:
            differs = content_digest(altered(rows, field.name, row, value)) != known
            assert differs != is_clock(field.name), (field.name, value)


@pytest.mark.parametrize("table", TABLES)
def test_a_content_digest_covers_the_order_and_the_number_of_rows(table: str) -> None:
    rows = example(table)
    assert len({content_digest(one) for one in (rows, rows.take([1, 0, 2, 3, 4]), rows.slice(0, 4))}) == 3


@pytest.mark.parametrize("table", TABLES)
def test_a_content_digest_does_not_depend_on_chunks_in_memory(table: str) -> None:
    rows = example(table)
    twice = pa.concat_tables([rows, rows])
    assert content_digest(pa.concat_tables([rows.slice(0, 2), rows.slice(2)])) == content_digest(rows)
    assert content_digest(twice.slice(5)) == content_digest(rows)


@pytest.mark.parametrize("table", TABLES)
def test_rows_read_back_have_the_content_digest_of_their_file(tmp_path: Path, table: str) -> None:
    file = publish_table(tmp_path, "some.parquet", table, example(table))
    assert content_digest(read_table(tmp_path / "some.parquet")) == file.content


def test_a_content_digest_does_not_depend_on_the_bytes_under_a_null() -> None:
    null = np.array([False, True])
    one, other = (pa.table({"reward": pa.array(np.array([1.0, under]), mask=null)}) for under in (0.0, 7.0))
    assert one.equals(other)
    assert content_digest(one) == content_digest(other)


@pytest.mark.parametrize("table", TABLES)
def test_a_flipped_byte_in_any_column_is_detected(tmp_path: Path, table: str) -> None:
    path = tmp_path / "some.parquet"
    publish_table(tmp_path, "some.parquet", table, example(table, 50))
    whole = path.read_bytes()
    chunks = pq.ParquetFile(path).metadata.row_group(0)
    for place in range(chunks.num_columns):
        chunk = chunks.column(place)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        last = start + chunk.total_compressed_size - 1
        path.write_bytes(whole[:last] + bytes([whole[last] ^ 1]) + whole[last + 1 :])
        with pytest.raises(CorruptData, match=r"some\.parquet: cannot be read"):
            read_table(path)
    path.write_bytes(whole)
    assert read_table(path).num_rows == 50


def test_a_flipped_byte_anywhere_is_detected_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    rows = example("residuals")
    publish_table(tmp_path, "some.parquet", "residuals", rows)
    whole = path.read_bytes()
    columns = rows.column_names
    found = 0
    for place in range(0, len(whole), 9):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :])
        try:
            assert read_table(path, columns).equals(rows)
        except CorruptData:
            found += 1
    assert found > len(whole) / 20


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_detected(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "some.parquet"
    publish_table(tmp_path, "some.parquet", "updates", example("updates"))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptData, match=r"some\.parquet"):
        read_table(path)


def test_a_missing_file_is_detected(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match=r"none\.parquet"):
        read_table(tmp_path / "none.parquet")


def test_a_missing_column_is_detected(tmp_path: Path) -> None:
    publish_table(tmp_path, "some.parquet", "updates", example("updates"))
    with pytest.raises(CorruptData, match=r"some\.parquet"):
        read_table(tmp_path / "some.parquet", ["round", "delta"])


def test_a_directory_that_looks_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    file = publish_table(tmp_path, "round=00007/some.parquet", "updates", example("updates"))
    assert read_table(tmp_path / file.path).equals(example("updates"))


def test_a_manifest_is_read_back_unchanged(tmp_path: Path) -> None:
    write_manifest(tmp_path / "learning.json", MANIFEST)
    found = read_manifest(tmp_path / "learning.json")
    assert found == MANIFEST
    assert found.digest == MANIFEST.digest
    assert Manifest.from_json(json.loads(json.dumps(MANIFEST.to_json()))) == MANIFEST


def test_a_manifest_that_was_never_written_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "learning.json") is None


def test_a_manifest_truncated_anywhere_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "learning.json"
    write_manifest(path, MANIFEST)
    whole = path.read_text(encoding="utf-8").rstrip()
    for length in range(0, len(whole), 7):
        path.write_text(whole[:length], encoding="utf-8")
        with pytest.raises(CorruptData, match=r"learning\.json: is not a manifest"):
            read_manifest(path)


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", "null", '{"files": []}', '{"files": [{}], "stage": "s", "round": 1, "key": "k"}', "\x00", "3"],
)
def test_json_that_is_not_a_manifest_is_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / "learning.json").write_text(text, encoding="utf-8")
    with pytest.raises(CorruptData, match=r"learning\.json: is not a manifest"):
        read_manifest(tmp_path / "learning.json")


def test_a_manifest_that_is_not_utf8_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "learning.json").write_bytes(b'{"stage": "\xff"}')
    with pytest.raises(CorruptData, match=r"learning\.json: is not a manifest"):
        read_manifest(tmp_path / "learning.json")


def test_the_digest_of_a_manifest_covers_contents_but_not_times_or_paths() -> None:
    first, second = MANIFEST.files
    moved = dataclasses.replace(first, path="elsewhere", sha256="other bytes")
    same = [
        dataclasses.replace(MANIFEST, seconds=9.0, ended_at=0.0, info={}),
        dataclasses.replace(MANIFEST, files=(moved, second)),
    ]
    other = [
        dataclasses.replace(MANIFEST, key="another key"),
        dataclasses.replace(MANIFEST, stage="sampling"),
        dataclasses.replace(MANIFEST, files=(second, first)),
        dataclasses.replace(MANIFEST, files=(first,)),
        dataclasses.replace(MANIFEST, files=(dataclasses.replace(first, content="other rows"), second)),
    ]
    assert {manifest.digest for manifest in same} == {MANIFEST.digest}
    assert len({manifest.digest for manifest in [MANIFEST, *other]}) == len(other) + 1


def test_a_manifest_finds_its_one_file_of_a_table() -> None:
    assert MANIFEST.file("draws").path == "d"
    with pytest.raises(ValueError, match="not enough values"):
        MANIFEST.file("scores")
