"""Which columns of a file hold what: as the user says, or by a few known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reval_core.errors import InputError


@dataclass(frozen=True)
class Fields:
    """What a row of one kind of file may hold."""

    names: Mapping[str, tuple[tuple[str, ...], ...]]
    """The names that a field is looked for under, in small letters: the first group that has one decides."""
    required: tuple[str, ...]
    """The fields that a file must have a column for."""
    settings: str = ""
    """How a config names a column, where one can."""

    def remedy(self, name: str) -> str:
        """What to do about a field whose column is not known."""
        return f"say which with {self.settings.format(name)}--column {name}=NAME"


def column_options(options: Iterable[str], fields: Fields) -> dict[str, str]:
    """The columns that options such as `response=completion` name, by field.

    Raises InputError for an option that says nothing else.
    """
    names, example, known = {}, fields.required[-1], ", ".join(fields.names)
    for option in options:
        name, equals, column = option.partition("=")
        if not equals or not column:
            raise InputError(f"--column {option}: must look like {example}=NAME; the fields are {known}")
        if name not in fields.names:
            near = difflib.get_close_matches(name, fields.names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {known}"
            raise InputError(f"--column {option}: {name!r} is nothing that a row holds; {hint}")
        names[name] = column
    return names


def choose_columns(
    source: str,
    columns: Iterable[str],
    fields: Fields,
    given: Mapping[Any, str],
    preferred: Mapping[Any, str] | None = None,
) -> dict[str, str]:
    """The columns of a file for the fields that it has: those given, else those preferred, else by known names.

    Raises InputError naming the file if a field that is given or required has no column, or more than one.
    """
    there = list(columns)
    preferred = preferred or {}
    found: dict[str, str] = {}
    for name in fields.names:
        if name in given:
            if not _has(there, given[name]):
                raise InputError(
                    f"{source}: has no column {given[name]!r} for the {name}; it has {_listed(there)}: "
                    f"{fields.remedy(name)}"
                )
            found[name] = given[name]
        elif name in preferred and _has(there, preferred[name]):
            found[name] = preferred[name]
        else:
            column = _guess(source, there, fields, name)
            if column is not None:
                found[name] = column
    for name in fields.required:
        if name not in found:
            raise InputError(
                f"{source}: has no column for the {name}; it has {_listed(there)}: {fields.remedy(name)}"
            )
    return found


def value_at(values: Mapping[str, Any], column: str | None) -> Any:
    """What stands in a column, or under the dots of its name in a nested one; None where nothing does."""
    if column is None or column in values:
        return None if column is None else values[column]
    name, _, rest = column.partition(".")
    inner = values.get(name) if rest else None
    return value_at(inner, rest) if isinstance(inner, Mapping) else None


def _has(there: Sequence[str], column: str) -> bool:
    """Whether a file has a column. Of a nested one only the outermost is looked for: rows may differ inside."""
    return column in there or column.partition(".")[0] in there


def _guess(source: str, there: Sequence[str], fields: Fields, field: str) -> str | None:
    for group in fields.names[field]:
        found = [name for name in there if name.lower() in group]
        found += [name for name in group if "." in name and name.partition(".")[0] in there]
        if len(found) > 1:
            raise InputError(f"{source}: {' and '.join(found)} may both hold the {field}; {fields.remedy(field)}")
        if found:
            return found[0]
    return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:12]))
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"
