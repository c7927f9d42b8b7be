"""JSON that every parser takes, of whatever a run or a query holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from reval_core.output.control_characters import json_escaped

_LONGEST_NUMBER_BITS = 10_000
"""Python writes no longer number in decimal."""


def json_text(value: Any, indent: int | None = 2, ascii_only: bool = False) -> str:
    """JSON of a value, on one line if `indent` is None.

    What JSON cannot hold stands as what comes nearest: null for NaN and infinity, the hexadecimal digits of bytes,
    a text for dates, decimals and all else, and for a key that is no text what it would be as a value. Characters
    that act on a terminal are escapes in it.
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
