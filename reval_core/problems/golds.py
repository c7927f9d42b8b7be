"""Conversion of gold answers in files to the single line of text that the verifier compares with."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

from reval_core.answers import alternatives, as_integer
from reval_core.answers.extraction import extract, prepare_gold
from reval_core.answers.reading import read_answer
from reval_core.config import GoldMode
from reval_core.rows import Unusable, json_list, plain_text
from reval_core.verification.equations import is_identity

GoldKind = Literal["integer", "number", "expression", "list", "choice", "text"]
"""The kind of a gold answer. `text`: words without any mathematics, or an argument rather than an answer."""

LONGEST_GOLD = 200
"""Length in characters above which a gold is hardly an answer."""

_NUMBER = re.compile(r"[+-]?[0-9][0-9,.]*\s*(?:\\?%)?|[+-]?\\?[dt]?frac\s*(?:\{-?[0-9]+\}){2}|[+-]?[0-9]+/[0-9]+")
_WORDS = re.compile(r"(?:\\text(?:bf|rm|it)?\s*\{)?[A-Za-z][A-Za-z' .-]{2,}\}?")
_WRAPPING = re.compile(r"\$|\\(?:boxed|fbox|text|textbf|textit|mathrm|mathbf|mbox)(?![A-Za-z])|[{}]")
_MISSING = {"", "nan", "-nan", "none", "null", "nil", "n/a", "n.a", "na", "nat", "missing", "undefined", "unknown"}
_MISSING |= {"missing value", "not available", "not applicable", "not provided", "not given", "no answer", "error"}
_MISSING |= {
    "empty",
    "blank",
    "placeholder",
    "answer",
    "todo",
    "tbd",
    "tba",
    "tbc",
    "fixme",
    "xxx",
    "ref!",
    "value!",
}
_COMMAND = re.compile(r"\\(?!text)[A-Za-z]+")


def gold_text(value: Any, gold_mode: GoldMode, field: str = "answer") -> str:
    """An answer as text. For a whole solution, the content of the last box, or what follows the last ####.

    A list, also as JSON text, becomes its members separated by commas, as `alternatives` splits them.
    Raises Unusable for values that are not an answer.
    """
    members = listed(value)
    if members is not None:
        return _joined([gold_text(one, gold_mode, field) for one in members], gold_mode, field)
    text = plain_text(value, field)
    text = extract(text, ("boxed", "hashes")) or text
    if "=" in text and is_identity(read_answer(prepare_gold(text))):
        raise Unusable(f"{field}: is an identity, which every response satisfies")
    return text


def listed(value: Any) -> list[Any] | None:
    """The members of an answer that is a list, also as JSON text; None for other answers."""
    if isinstance(value, list):
        return value
    return json_list(value) if isinstance(value, str) else None


def is_missing(gold: str) -> bool:
    """Whether a gold is a placeholder for a missing value, such as `nan`, `N/A` or `TODO`, or only punctuation."""
    word = _WRAPPING.sub("", gold).strip(" \t\n\\.!:;'\"()[]<>#").casefold()
    return word in _MISSING or not any(unicodedata.category(letter)[0] in "LNS" for letter in gold.replace("$", ""))


def gold_kind(gold: str, gold_mode: GoldMode) -> GoldKind:
    """The kind of a gold answer."""
    answer = prepare_gold(gold)
    if gold_mode == "choice" or re.fullmatch(r"[A-J]", answer):
        return "choice"
    if as_integer(answer) is not None:
        return "integer"
    if len(alternatives(answer)) > 1:
        return "list"
    if _NUMBER.fullmatch(answer):
        return "number"
    if len(answer) > LONGEST_GOLD or (_WORDS.fullmatch(answer) and not _COMMAND.search(answer)):
        return "text"
    return "expression"


def _joined(members: Sequence[str], gold_mode: GoldMode, field: str) -> str:
    unique = list(dict.fromkeys(members))
    if not unique:
        raise Unusable(f"{field}: is an empty list")
    if len(unique) > 1 and gold_mode == "any":
        nested = next((one for one in unique if len(alternatives(prepare_gold(one))) > 1), None)
        if nested is not None:
            raise Unusable(f"{field}: contains {nested!r}, itself a list, which gold_mode any does not support")
    return ", ".join(unique)
