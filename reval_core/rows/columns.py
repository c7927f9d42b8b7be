"""The mapping of fields to the columns of a file: as given by the user, or by common names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reval_core.errors import InputError


@dataclass(frozen=True)
class Fields:
    """The fields of a row in one kind of file."""

    names: Mapping[str, tuple[tuple[str, ...], ...]]
    """The column names recognised for each field, in lower case, in groups: the first group with a match
    decides."""
    required: tuple[str, ...]
    """The fields that every file must have a column for."""
    settings: str = ""
    """How a config specifies a column, if it can."""

    def remedy(self, name: str) -> str:
        """How to specify the column of a field."""
        return f"specify it with {self.settings.format(name)}--column {name}=NAME"


def column_options(options: Iterable[str], fields: Fields) -> dict[str, str]:
    """Parse options such as `response=completion` into column names by field.

    Raises InputError for an option of another form, or with an unknown field.
    """
    names, example, known = {}, fields.required[-1], ", ".join(fields.names)
    for option in options:
        name, equals, column = option.partition("=")
        if not equals or not column:
            raise InputError(f"--column {option}: must look like {example}=NAME; the fields are {known}")
        if name not in fields.names:
            near = difflib.get_close_matches(name, fields.names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known fields are {known}"
            raise InputError(f"--column {option}: {name!r} is not a field of a row; {hint}")
        names[name] = column
    return names


def choose_columns(
    source: str,
    columns: Iterable[str],
    fields: Fields,
    given: Mapping[Any, str],
    preferred: Mapping[Any, str] | None = None,
) -> dict[str, str]:
    """Choose the column of each field that a file has: the given one, else the preferred one, else by common names.

    Args:
        source: the file, for messages.
        columns: the columns that the file has.
        fields: the fields to find.
        given: columns by field, as the user specified them.
        preferred: columns by field that are used if the file has them.

    Raises:
        InputError: naming the file, if a given or required field has no column, or more than one.
    """
    available = list(columns)
    preferred = preferred or {}
    found: dict[str, str] = {}
    for name in fields.names:
        if name in given:
            if not _has(available, given[name]):
                raise InputError(
                    f"{source}: has no column {given[name]!r} for the {name}; it has {_listed(available)}: "
                    f"{fields.remedy(name)}"
                )
            found[name] = given[name]
        elif name in preferred and _has(available, preferred[name]):
            found[name] = preferred[name]
        else:
            column = _guess(source, available, fields, name)
            if column is not None:
                found[name] = column
    for name in fields.required:
        if name not in found:
            raise InputError(
                f"{source}: has no column for the {name}; it has {_listed(available)}: {fields.remedy(name)}"
            )
    return found


def value_at(values: Mapping[str, Any], column: str | None) -> Any:
    """The value of a column; dots in its name select nested columns. None if there is no such value."""
    if column is None or column in values:
        return None if column is None else values[column]
    name, _, rest = column.partition(".")
    inner = values.get(name) if rest else None
    return value_at(inner, rest) if isinstance(inner, Mapping) else None


def _has(available: Sequence[str], column: str) -> bool:
    """Whether a file has a column. Of a nested one only the outermost is checked: rows may differ inside."""
    return column in available or column.partition(".")[0] in available


def _guess(source: str, available: Sequence[str], fields: Fields, field: str) -> str | None:
    for group in fields.names[field]:
        found = [name for name in available if name.lower() in group]
        found += [name for name in group if "." in name and name.partition(".")[0] in available]
        if len(found) > 1:
            raise InputError(
                f"{source}: the {field} may be in {' or '.join(found)}, which is ambiguous; {fields.remedy(field)}"
            )
        if found:
            return found[0]
    return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:12]))
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"
