"""Responses from elsewhere: a Parquet or JSONL file with problem, response and what it is worth on each row."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowException

from reval_core.errors import InputError
from reval_core.jsonl import read_objects, text_of

FIELDS = ("problem", "response", "gold", "reward")
"""What a column may hold. The first two must be there; of the others each row needs one."""

_EXAMPLE = '{"problem": …, "response": …, "gold": …}'


@dataclass(frozen=True, slots=True)
class Response:
    """One row: a response to a problem, with the known answer, or with a reward from elsewhere, or with both."""

    place: str
    """Where it stands, for complaints: the file and the line or row, which count from 1."""
    problem: str
    response: str
    gold: str | None
    reward: float | None


def column_names(mapping: Sequence[str]) -> dict[str, str]:
    """The file's column for each of `FIELDS`, from options such as `response=completion`.

    Raises InputError for an option that says nothing else.
    """
    names = {field: field for field in FIELDS}
    for option in mapping:
        field, equals, column = option.partition("=")
        if not equals or not column:
            raise InputError(f"--column {option}: must look like response=completion")
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(FIELDS)}"
            raise InputError(f"--column {option}: {field!r} is nothing that a row holds; {hint}")
        names[field] = column
    return names


def read_responses(path: Path, columns: Mapping[str, str]) -> list[Response]:
    """All rows of a file: JSONL where its name ends in .jsonl, else Parquet.

    Raises InputError naming file, row and column of the first row that cannot be used.
    """
    rows = _jsonl(path) if path.suffix == ".jsonl" else _parquet(path, columns)
    found = [_response(row, place, columns) for place, row in rows]
    if not found:
        raise InputError(f"{path}: holds no response")
    return found


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in read_objects(path, _EXAMPLE):
        yield f"{path}:{number}", row


def _parquet(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, ArrowException) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as Parquet ({why}); give a .parquet or .jsonl file") from error
    there = file.schema_arrow.names
    for field in ("problem", "response"):
        if columns[field] not in there:
            raise InputError(
                f"{path}: has no column {columns[field]!r} for the {field}; it has {', '.join(there)}: "
                f"say which with --column {field}=NAME"
            )
    number = 0
    for batch in file.iter_batches(columns=[name for name in dict.fromkeys(columns.values()) if name in there]):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", row


def _response(row: Mapping[str, Any], place: str, columns: Mapping[str, str]) -> Response:
    value = {field: row.get(column) for field, column in columns.items()}
    gold, reward = value["gold"], value["reward"]
    if gold is None and reward is None:
        raise InputError(
            f"{place}: has neither {columns['gold']} nor {columns['reward']}; give the known answer or a reward, "
            "or say where it stands with --column gold=NAME or --column reward=NAME"
        )
    return Response(
        place=place,
        problem=text_of(value["problem"], columns["problem"], place),
        response=text_of(value["response"], columns["response"], place),
        gold=None if gold is None else text_of(gold, columns["gold"], place),
        reward=None if reward is None else _number(reward, columns["reward"], place),
    )


def _number(value: Any, field: str, place: str) -> float:
    """A reward. True and false, as graders leave them, are 1 and 0."""
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise InputError(f"{place}: {field}: must be a number, not {value!r}")
    return float(value)
