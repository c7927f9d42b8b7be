"""Strictly valid JSON of arbitrary values of a run or a query."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from reval_core.output.control_characters import json_escaped

_LONGEST_NUMBER_BITS = 10_000
"""Limit for decimal integers: Python refuses to convert much longer ones."""


def json_text(value: Any, indent: int | None = 2, ascii_only: bool = False) -> str:
    """Serialise a value as JSON, on one line if `indent` is None.

    Values that JSON cannot represent are replaced: NaN and infinity by null, bytes by their hexadecimal digits,
    dates, decimals and everything else by text, and keys that are not text by their JSON. Characters that a
    terminal interprets are escaped.
    """
    return json_escaped(json.dumps(_plain(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < _LONGEST_NUMBER_BITS else hex(value)
    if isinstance(value, Mapping):
        return {_key(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)


def _key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(_plain(key), ensure_ascii=False).strip('"')
