"""Known answers as files have them, made into the one line of text that the verifier compares with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from reval_core.answers import alternatives, as_integer, extract, prepare_gold
from reval_core.config import GoldMode

GoldKind = Literal["integer", "number", "expression", "list", "choice", "text"]
"""What a gold looks like. `text`: words without any mathematics, or no answer but an argument."""

LONGEST_GOLD = 200
"""In characters: what is longer is hardly an answer."""

_NUMBER = re.compile(r"[+-]?[0-9][0-9,.]*\s*(?:\\?%)?|[+-]?\\?[dt]?frac\s*(?:\{-?[0-9]+\}){2}|[+-]?[0-9]+/[0-9]+")
_WORDS = re.compile(r"(?:\\text(?:bf|rm|it)?\s*\{)?[A-Za-z][A-Za-z' .-]{2,}\}?")
_COMMAND = re.compile(r"\\(?!text)[A-Za-z]+")


class Unusable(Exception):
    """Why a row cannot be asked or judged; the message names the field."""


def gold_text(value: Any, gold_mode: GoldMode) -> str:
    """An answer as text. Of a whole solution, what stands in its last box or after its last ####.

    A list of one is its member; of several, the members with commas between them, as `alternatives` parts them.
    Raises Unusable for what is no answer.
    """
    if isinstance(value, list | tuple):
        return _joined([gold_text(one, gold_mode) for one in value], gold_mode)
    text = plain_text(value, "answer")
    return extract(text, ("boxed", "hashes")) or text


def plain_text(value: Any, field: str) -> str:
    """A text or a number as text, without space around it: 142.0 is 142. Raises Unusable for anything else."""
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None:
        raise Unusable(f"{field}: is missing")
    if not isinstance(value, str):
        inside = f"; an inner column is named {field}.NAME" if isinstance(value, dict) else ""
        raise Unusable(f"{field}: must be text or a number, not {type(value).__name__}{inside}")
    if not value.strip():
        raise Unusable(f"{field}: is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"{field}: holds half of a character ({error.reason})") from error
    return value.strip()


def gold_kind(gold: str, gold_mode: GoldMode) -> GoldKind:
    """What a gold looks like."""
    answer = prepare_gold(gold)
    if gold_mode == "choice" or re.fullmatch(r"[A-J]", answer):
        return "choice"
    if as_integer(answer) is not None:
        return "integer"
    if _NUMBER.fullmatch(answer):
        return "number"
    if len(alternatives(answer)) > 1:
        return "list"
    if len(answer) > LONGEST_GOLD or (_WORDS.fullmatch(answer) and not _COMMAND.search(answer)):
        return "text"
    return "expression"


def _joined(members: Sequence[str], gold_mode: GoldMode) -> str:
    unique = list(dict.fromkeys(members))
    if not unique:
        raise Unusable("answer: is an empty list")
    if len(unique) > 1 and gold_mode == "any":
        parted = next((one for one in unique if len(alternatives(prepare_gold(one))) > 1), None)
        if parted is not None:
            raise Unusable(f"answer: lists {parted!r}, which is a list itself, where any one member is right")
    return ", ".join(unique)
