"""Which columns of a file hold the problem, its answer and the rest: as the user says, or by a few known names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from reval_core.config import ProblemField
from reval_core.errors import InputError

Columns = Mapping[ProblemField, str]
"""The file's column for each field that it has."""

GUESSES: Mapping[ProblemField, tuple[tuple[str, ...], ...]] = {
    "problem": (("problem", "question", "prompt"),),
    "answer": (
        ("answer", "final_answer", "ground_truth", "reward_model.ground_truth", "correct answer"),
        ("correct_option_index",),
        ("solution",),
    ),
    "prompt_id": (("prompt_id",), ("unique_id", "record id"), ("id",)),
    "options": (("options", "choices"),),
}
"""The names that a field is looked for under, in small letters: the first group that has one decides."""

OTHER_OPTIONS = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
"""Where GPQA's own files have the wrong options; the right one is the answer."""


def choose_columns(source: str, names: Iterable[str], given: Columns, preferred: Columns) -> Columns:
    """The columns of a file that has `names`: those given, else those preferred where it has them, else by GUESSES.

    Raises InputError naming the file if a problem or an answer has no column, or more than one.
    """
    there = list(names)
    found: dict[ProblemField, str] = {}
    for field in get_args(ProblemField):
        if field in given:
            if not _has(there, given[field]):
                raise InputError(
                    f"{source}: has no column {given[field]!r} for the {field}; it has {_listed(there)}: "
                    f"{_say(field)}"
                )
            found[field] = given[field]
        elif field in preferred and _has(there, preferred[field]):
            found[field] = preferred[field]
        else:
            column = _guess(source, there, field)
            if column is not None:
                found[field] = column
    for field in ("problem", "answer"):
        if field not in found:
            raise InputError(f"{source}: has no column for the {field}; it has {_listed(there)}: {_say(field)}")
    return found


def value_at(values: Mapping[str, Any], column: str) -> Any:
    """What stands in a column, or under the dots of its name in a nested one; None where nothing does."""
    if column in values:
        return values[column]
    name, _, rest = column.partition(".")
    inner = values.get(name) if rest else None
    return value_at(inner, rest) if isinstance(inner, Mapping) else None


def _has(there: list[str], column: str) -> bool:
    """Whether a file has a column. Of a nested one only the outermost is looked for: rows may differ inside."""
    return column in there or column.partition(".")[0] in there


def _guess(source: str, there: list[str], field: ProblemField) -> str | None:
    for group in GUESSES[field]:
        found = [name for name in there if name.lower() in group]
        found += [name for name in group if "." in name and name.partition(".")[0] in there]
        if len(found) > 1:
            raise InputError(f"{source}: {' and '.join(found)} may both hold the {field}; {_say(field)}")
        if found:
            return found[0]
    return None


def _say(field: str) -> str:
    return f"say which with columns: {{{field}: NAME}} or --column {field}=NAME"


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:12]))
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"
