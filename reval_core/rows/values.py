"""Conversion of cell values to text and numbers: numbers of every type, chats and multi-part contents."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

Role = Literal["user", "assistant"]

_ROLES: Mapping[str, Role] = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""The usual role names, and ShareGPT's."""

_TURNS = re.compile(r"\s*\[?\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")
"""The beginning of a chat that is serialised as text."""


class Unusable(Exception):
    """A row cannot be used. The message names the field and the reason."""


def text_of(value: Any, field: str) -> str:
    """A text unchanged, or a number as text: 2.0 is 2, Decimal 3.50 is 3.5. Raises Unusable for anything else."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        raise Unusable(f"{field}: is missing")
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, Decimal) and value.is_finite():
        return f"{value.normalize():f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    inside = f"; specify a nested column as {field}.NAME" if isinstance(value, Mapping) else ""
    kind = f"the number {value}" if isinstance(value, float | Decimal) else type(value).__name__
    raise Unusable(f"{field}: must be text or a number, not {kind}{inside}")


def plain_text(value: Any, field: str) -> str:
    """As `text_of`, stripped of whitespace. Raises Unusable also for an empty text, and for a lone surrogate."""
    text = text_of(value, field).strip()
    if not text:
        raise Unusable(f"{field}: is empty")
    return whole_text(text, field)


def whole_text(text: str, field: str) -> str:
    """The text, unchanged. Raises Unusable if it contains a lone surrogate, which cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"{field}: contains a lone surrogate ({error.reason})") from error
    return text


def number_of(value: Any, field: str) -> float:
    """A finite number, also from text, as in CSV; true and false, as graders write them, are 1 and 0.

    Raises Unusable for anything else.
    """
    flags = {"true": 1.0, "false": 0.0}
    try:
        number = flags[value.lower()] if isinstance(value, str) and value.lower() in flags else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable(f"{field}: must be a number, not {value!r}")
    return number


_LONE_BACKSLASH = re.compile(r"(?<!\\)\\(?!u[0-9A-Fa-f]{4})(?=[A-Za-z]{2}|[^\"\\/A-Za-z])")
"""A backslash that starts a LaTeX command rather than a JSON escape."""


def json_list(text: str) -> list[str] | None:
    r"""The members of a list that is serialised as JSON text, `["2", "3"]`; None if the text is not such a list.

    `[1, 2]` does not count: intervals and vectors are written this way. A single number in brackets does. Unescaped
    backslashes are read as LaTeX: `["\text{even}"]` contains no tab.
    """
    if not text.strip().startswith("["):
        return None
    try:
        found = json.loads(_LONE_BACKSLASH.sub(r"\\\\", text))
    except (ValueError, RecursionError):
        return None
    lone = len(found) == 1 and isinstance(found[0], int | float) and not isinstance(found[0], bool)
    return found if lone or (found and all(isinstance(one, str) for one in found)) else None


def last_turn(value: Any, role: Role, field: str) -> Any:
    """The content of a role's last turn in a chat; any other value unchanged.

    A chat is a list of turns, a single turn, or either as JSON text. The content of a turn may have several parts.
    Raises Unusable for a chat without such a turn, and for parts that are not text.
    """
    said = turns_of(value, role, field)
    if said is not None:
        if not said:
            raise Unusable(f"{field}: is a chat without a turn of role {role}")
        value = said[-1].get("content", said[-1].get("value"))
    return _joined(value, field) if _in_parts(value) else value


def turns_of(value: Any, role: Role, field: str) -> list[Mapping[str, Any]] | None:
    """The turns of a role in a chat; None for other values. Raises Unusable for a chat in text that is not JSON."""
    if isinstance(value, str) and _TURNS.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"{field}: looks like a chat but is not JSON ({error}); write it as JSON") from error
    if isinstance(value, Mapping) and all(isinstance(value.get(name), list) for name in ("role", "content")):
        # A chat in columns, as the Hugging Face library stores a sequence of structs.
        columns = zip(value["role"], value["content"], strict=False)
        value = [{"role": who, "content": content} for who, content in columns]
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        return None
    return [turn for turn in turns if _ROLES.get(str(turn.get("role", turn.get("from")))) == role]


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or {"from", "value"} <= value.keys())


def _in_parts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, Mapping) and "type" in one for one in value)


def _joined(parts: Sequence[Any], field: str) -> str:
    """The text of a multi-part content."""
    other = next((part for part in parts if not isinstance(part, Mapping) or part.get("type") != "text"), None)
    if other is not None:
        kind = other.get("type") if isinstance(other, Mapping) else type(other).__name__
        raise Unusable(f"{field}: contains a part of type {kind!r}; only text is supported")
    return "".join(text_of(part.get("text"), field) for part in parts)
