"""Reading of rows from JSONL, JSON, CSV, Parquet and Arrow files, by the extension of their names."""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from reval_core.config.places import check_local
from reval_core.errors import InputError
from reval_core.rows.columns import Fields, choose_columns, value_at
from reval_core.rows.values import Unusable

Made = TypeVar("Made")

_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row of a file."""

    place: str
    """The file and the line or row, for error messages."""
    number: int
    """The line or row, from 1."""
    values: Mapping[str, Any]


def read_rows(path: Path, example: str = '{"problem": …, "answer": …}') -> list[Row]:
    """Read all rows of a file. A `.json` file is a list of objects, or one object per line.

    Args:
        path: the file.
        example: an example row, for error messages.

    Raises:
        InputError: naming the file, and the line or row if one cannot be read.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".parquet": _parquet,
        ".arrow": _arrow,
    }
    check_local(path)
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: cannot be read (unknown file format); the name must end in {', '.join(readers)}")
    try:
        _check_file(path)
        rows = list(reader(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as UTF-8 ({error}); save it as UTF-8") from error
    if not rows:
        raise InputError(f"{path}: contains no rows; give a file with rows like {example}")
    for row in rows:
        if not isinstance(row.values, dict):
            raise InputError(f"{row.place}: not a JSON object; write {example}")
    return rows


def read_as(
    path: Path,
    fields: Fields,
    columns: Mapping[str, str],
    example: str,
    make: Callable[[dict[str, Any], str], Made],
) -> list[Made]:
    """Convert each row of a file.

    Args:
        path: the file.
        fields: the fields of a row.
        columns: column names by field, as the user specified them.
        example: an example row, for error messages.
        make: converts a row, given its values by field and its place. Raises Unusable for a row that cannot be
        used.

    Raises:
        InputError: naming its place for a row that cannot be used; also for a file that cannot be read, and for
            columns that cannot be determined.
    """
    rows = read_rows(path, example)
    names = dict.fromkeys(name for row in rows for name in row.values)
    chosen = choose_columns(str(path), names, fields, columns)
    found = []
    for row in rows:
        try:
            values = {field: value_at(row.values, chosen.get(field)) for field in fields.names}
            found.append(make(values, row.place))
        except Unusable as error:
            raise InputError(
                f"{row.place}: {error}; fix the row, or specify the field's column with --column FIELD=NAME"
            ) from error
    return found


def within(place: str, origin: str) -> str:
    """A place without the file or dataset: `row 3`, or `line 3`."""
    rest = place.removeprefix(origin)
    return f"line {rest[1:]}" if rest[1:].isdigit() else rest.removeprefix(": ")


def numbered(values: Iterable[Mapping[str, Any]], path: Path | str) -> Iterator[Row]:
    """Number rows that have no line numbers."""
    for number, one in enumerate(values, start=1):
        yield Row(f"{path}: row {number}", number, one)


def _check_file(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise InputError(f"{path}: cannot be read (it is {kind}); give a file")
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(f"{path}: is a git-lfs pointer instead of the file itself; run git lfs pull")


def _jsonl(path: Path) -> Iterator[Row]:
    return _lines(path, path.read_text(encoding="utf-8-sig"))


def _json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        return numbered(_parsed(text, path), path)
    return _lines(path, text)


def _lines(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines(): real files contain U+2028 inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Row(f"{path}:{number}", number, _parsed(line, path, number))


def _parsed(text: str, path: Path, line: int | None = None) -> Any:
    """Parse a JSON text. `line` is its line in the file; None if it is the whole file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{line or error.lineno}: is not JSON ({error.msg} at column {error.colno}); fix the line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
        place = f"{path}:{line}" if line else str(path)
        raise InputError(f"{place}: cannot be read ({error}); fix or remove the value") from error


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default, 131,072 characters, is less than a long response
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _check_names(path, reader.fieldnames or ())
            for row in numbered(reader, path):
                if None in row.values:
                    raise InputError(f"{row.place}: has more fields than the header; quote fields with commas")
                yield row
        except csv.Error as error:
            raise InputError(f"{path}:{reader.reader.line_num}: is not CSV ({error}); fix the line") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names)
            batches = list(file.iter_batches(columns=_readable_columns(file.schema_arrow)))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, "Parquet", error) from error
    return _table_rows(path, batches, file.schema_arrow)


def _arrow(path: Path) -> Iterator[Row]:
    """Read Arrow's stream format, in which the Hugging Face library stores datasets, or its file format."""
    try:
        with pa.OSFile(os.fspath(path)) as source:
            try:
                table = pa.ipc.open_stream(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                table = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, "Arrow", error) from error
    _check_names(path, table.schema.names)
    return _table_rows(path, table.select(_readable_columns(table.schema)).to_batches(), table.schema)


def _readable_columns(schema: pa.Schema) -> list[str]:
    """The columns to read: all except binary ones, which contain images and the like."""
    return [field.name for field in schema if not _holds_bytes(field.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _table_rows(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[Row]:
    # Placeholders for binary columns, so that an error about one names its type.
    unread = dict.fromkeys((field.name for field in schema if _holds_bytes(field.type)), b"")
    try:
        yield from numbered((unread | row for batch in batches for row in _short(batch).to_pylist()), path)
    # Invalid UTF-8, or timestamps out of range.
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise _unreadable(path, "a table", error) from error


def _short(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with 32-bit floats as their shortest decimals: 0.1, not 0.10000000149011612."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type):
            column = pc.cast(pc.cast(batch.column(place), pa.string()), pa.float64())
            batch = batch.set_column(place, field.name, column)
    return batch


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path}: has two columns named {twice[0]!r}; rename one")


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: cannot be read as {kind} ({why}); fix it or use another copy")
