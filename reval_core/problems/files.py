"""The rows of a file of problems or responses: JSONL, JSON, CSV, Parquet or Arrow, by the ending of its name."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from reval_core.errors import InputError
from reval_core.jsonl import read_objects

_EXAMPLE = '{"problem": …, "answer": …}'


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, before anything is made of it."""

    place: str
    """Where it stands, for complaints: the file and the line or row."""
    number: int
    """Its line or row, from 1."""
    values: Mapping[str, Any]


def read_rows(path: Path, example: str = _EXAMPLE) -> list[Row]:
    """All rows of a file. A `.json` file is a list of objects, or one object a line.

    `example` is what a row should look like, for complaints.
    Raises InputError naming the file, and the line or row where one cannot be read.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": partial(_lines, example=example),
        ".json": partial(_json, example=example),
        ".csv": _csv,
        ".parquet": _parquet,
        ".arrow": _arrow,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: cannot be read by its name; it must end in {', '.join(readers)}")
    rows = list(reader(path))
    if not rows:
        raise InputError(f"{path}: holds no row; give a file with one like {example}")
    return rows


def within(place: str, origin: str) -> str:
    """A place without its file or dataset: `row 3`, or `line 3`."""
    rest = place.removeprefix(origin)
    return f"line {rest[1:]}" if rest[1:].isdigit() else rest.removeprefix(": ")


def numbered(values: Iterable[Mapping[str, Any]], path: Path | str) -> Iterator[Row]:
    """Rows that stand on no lines of text."""
    for number, one in enumerate(values, start=1):
        yield Row(f"{path}: row {number}", number, one)


def _lines(path: Path, example: str) -> Iterator[Row]:
    for number, values in read_objects(path, example):
        yield Row(f"{path}:{number}", number, values)


def _json(path: Path, example: str) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 ({error}); give a JSON file") from error
    if not text.lstrip().startswith("["):
        yield from _lines(path, example)
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); mend it"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
        raise InputError(f"{path}: cannot be read ({error}); take out what is not needed") from error
    for row in numbered(rows, path):
        if not isinstance(row.values, dict):
            raise InputError(f"{row.place}: not a JSON object; write {example}")
        yield row


def _csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in numbered(reader, path):
                if None in row.values:
                    raise InputError(f"{row.place}: has more fields than the first line names; put them in quotes")
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 ({error}); give a CSV file") from error
    except csv.Error as error:
        raise InputError(f"{path}:{reader.reader.line_num}: not CSV ({error}); mend the line") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            batches = list(file.iter_batches(columns=_told(file.schema_arrow)))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, "Parquet", error) from error
    yield from _table_rows(path, batches)


def _arrow(path: Path) -> Iterator[Row]:
    """A file of Arrow's stream format, as the Hugging Face library keeps its datasets, or of its file format."""
    try:
        with pa.OSFile(str(path)) as source:
            try:
                table = pa.ipc.open_stream(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                table = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, "Arrow", error) from error
    yield from _table_rows(path, table.select(_told(table.schema)).to_batches())


def _told(schema: pa.Schema) -> list[str]:
    """The columns that may hold text: pictures and the like stay where they are."""
    return [field.name for field in schema if not pa.types.is_binary(field.type)]


def _table_rows(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    try:
        yield from numbered((row for batch in batches for row in batch.to_pylist()), path)
    # Bytes that are no text, times that no calendar has.
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise _unreadable(path, "a table", error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: cannot be read as {kind} ({why}); mend it or take another copy")
