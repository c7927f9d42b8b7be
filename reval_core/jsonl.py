"""JSONL files that people write: one object a line, and a complaint that names the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reval_core.errors import InputError


def read_objects(path: Path, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with the lines that they stand on, from 1. Empty lines are skipped.

    `example` is what a line should look like. Raises InputError naming the line that is no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 ({error}); give a JSONL file") from error
    # Not splitlines(): real files hold U+2028 inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parse(line, f"{path}:{number}", example)


def text_of(value: Any, field: str, place: str) -> str:
    """A value that must be a text, and not an empty one. Whole numbers are taken as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None:
        raise InputError(f"{place}: {field}: is missing; every line needs one")
    if not isinstance(value, str):
        raise InputError(f"{place}: {field}: must be text, not {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{place}: {field}: is empty; give one or take the line out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: {field}: holds half of a character ({error.reason}); mend it") from error
    return value


def _parse(line: str, place: str, example: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error.msg} at column {error.colno}); mend the line") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
        raise InputError(f"{place}: cannot be read ({error}); take the line out") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: not a JSON object; write {example}")
    return row
