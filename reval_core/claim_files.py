"""Files of responses with known answers, for judging: a claim on each row."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from reval_core.errors import InputError
from reval_core.problems.files import Row, read_rows
from reval_core.verification.claims import Claim, GoldMode

FIELDS = ("gold", "response", "gold_mode", "truncated", "expected", "problem")
"""What a column may hold. The first two must be there."""

_OTHER_NAMES = {"gold": "answer", "expected": "label"}
# CSV holds text only, and an empty cell where there is nothing.
_FLAGS = {"": None, "true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_EXAMPLE = '{"gold": …, "response": …}'


@dataclass(frozen=True)
class ClaimRow:
    """A claim, where it stands (the file and the line or row, from 1), and whether it should be right."""

    place: str
    claim: Claim
    expected: bool | None


def claim_columns(mapping: Sequence[str]) -> dict[str, str]:
    """The file's column for a field, from options such as `gold=answer`; fields that are not named are not in it.

    Raises InputError for an option that says nothing else.
    """
    names = {}
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


def read_claims(path: Path, columns: Mapping[str, str], gold_mode: GoldMode) -> list[ClaimRow]:
    """All rows of a file, of any kind that `read_rows` reads.

    A column that `columns` does not name has its field's name; the gold may also stand in `answer`, and whether the
    response should be right in `label`. `gold_mode` is that of rows that have none.
    Raises InputError naming file, row and column of the first row that cannot be used, or a column that no row has.
    """
    rows = read_rows(path, _EXAMPLE)
    there = dict.fromkeys(name for row in rows for name in row.values)
    for field, column in columns.items():
        if column not in there:
            names = ", ".join(map(repr, there)) or "none"
            raise InputError(f"{path}: has no column {column!r} for {field}; it has {names}: mend --column")
    return [_claim(row, columns, gold_mode) for row in rows]


def _claim(row: Row, columns: Mapping[str, str], gold_mode: GoldMode) -> ClaimRow:
    place = row.place
    names = {field: columns.get(field) or _name(field, row.values) for field in FIELDS}
    value = {field: row.values.get(name) for field, name in names.items()}
    if value["gold_mode"] and value["gold_mode"] not in get_args(GoldMode):
        modes = ", ".join(get_args(GoldMode))
        raise InputError(f"{place}: {names['gold_mode']}: {value['gold_mode']!r} is no mode; take one of {modes}")
    claim = Claim(
        gold=_text(value["gold"], names["gold"], place),
        response=_text(value["response"], names["response"], place),
        truncated=_flag(value["truncated"], names["truncated"], place) or False,
        gold_mode=value["gold_mode"] or gold_mode,
        problem="" if value["problem"] is None else _text(value["problem"], names["problem"], place),
    )
    return ClaimRow(place, claim, _flag(value["expected"], names["expected"], place))


def _name(field: str, row: Mapping[str, Any]) -> str:
    other = _OTHER_NAMES.get(field)
    return other if other is not None and field not in row and other in row else field


def _text(value: Any, column: str, place: str) -> str:
    """A text, which may be empty or hold half a character: those are judged. Numbers are taken as text."""
    if value is None:
        raise InputError(f"{place}: {column}: is missing; every row needs one, or say where with --column")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{place}: {column}: must be text, not {type(value).__name__}")
    return str(value)


def _flag(value: Any, column: str, place: str) -> bool | None:
    flag = "" if value is None else str(value).lower()
    if flag in _FLAGS:
        return _FLAGS[flag]
    raise InputError(f"{place}: {column}: must be true or false, not {value!r}")
