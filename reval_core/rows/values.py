"""What stands in a cell, as text: numbers of every kind, chats and their parts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

Role = Literal["user", "assistant"]

_ROLES: Mapping[str, Role] = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""ShareGPT's names beside those of everybody else."""

_TURNS = re.compile(r"\s*\[?\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")
"""How a chat begins that was written as text."""


class Unusable(Exception):
    """Why a row cannot be asked or judged; the message names the field."""


def text_of(value: Any, field: str) -> str:
    """A text as it is, or a number as text: 2.0 is 2, Decimal 3.50 is 3.5. Raises Unusable for anything else."""
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
    inside = f"; an inner column is named {field}.NAME" if isinstance(value, Mapping) else ""
    kind = f"the number {value}" if isinstance(value, float | Decimal) else type(value).__name__
    raise Unusable(f"{field}: must be text or a number, not {kind}{inside}")


def plain_text(value: Any, field: str) -> str:
    """The same without space around it. Raises Unusable also for an empty text, and for half of a character."""
    text = text_of(value, field).strip()
    if not text:
        raise Unusable(f"{field}: is empty")
    return whole_text(text, field)


def whole_text(text: str, field: str) -> str:
    """The text. Raises Unusable if it holds half of a character, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"{field}: holds half of a character ({error.reason})") from error
    return text


def number_of(value: Any, field: str) -> float:
    """A finite number, which CSV holds as text; true and false, as graders leave them, are 1 and 0.

    Raises Unusable.
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
"""A backslash that begins a command of LaTeX and no escape of JSON."""


def json_list(text: str) -> list[str] | None:
    r"""The members of a list that was written as JSON text, `["2", "3"]`; None where the text is none.

    `[1, 2]` is none: mathematics writes intervals and vectors so. A lone number in brackets is one. LaTeX whose
    backslashes were not doubled is read as LaTeX: `["\text{even}"]` holds no tab.
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
    """Of a chat, what the last turn of a role says; anything else as it is.

    A chat is a list of turns, one turn, or either as JSON text; a turn's content may come in parts.
    Raises Unusable for a chat without such a turn, and for parts that are no text.
    """
    said = turns_of(value, role, field)
    if said is not None:
        if not said:
            raise Unusable(f"{field}: is a chat without a turn of the {role}")
        value = said[-1].get("content", said[-1].get("value"))
    return _joined(value, field) if _in_parts(value) else value


def turns_of(value: Any, role: Role, field: str) -> list[Mapping[str, Any]] | None:
    """The turns of a role in a chat; None for what is no chat. Raises Unusable for one as text that is not JSON."""
    if isinstance(value, str) and _TURNS.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"{field}: looks like a chat and is not JSON ({error}); write it as JSON") from error
    if isinstance(value, Mapping) and all(isinstance(value.get(name), list) for name in ("role", "content")):
        # A chat by columns, as the Hugging Face library keeps a sequence of structs.
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
    """The text of a content in parts."""
    other = next((part for part in parts if not isinstance(part, Mapping) or part.get("type") != "text"), None)
    if other is not None:
        kind = other.get("type") if isinstance(other, Mapping) else type(other).__name__
        raise Unusable(f"{field}: holds a part that is {kind!r}, and only text is read")
    return "".join(text_of(part.get("text"), field) for part in parts)
