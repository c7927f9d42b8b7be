"""Known answers as files have them, made into the one line of text that the verifier compares with."""

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
"""What a gold looks like. `text`: words without any mathematics, or no answer but an argument."""

LONGEST_GOLD = 200
"""In characters: what is longer is hardly an answer."""

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
    """An answer as text. Of a whole solution, what stands in its last box or after its last ####.

    A list of one is its member; of several, the members with commas between them, as `alternatives` parts them.
    The list may be JSON text. Raises Unusable for what is no answer.
    """
    members = listed(value)
    if members is not None:
        return _joined([gold_text(one, gold_mode, field) for one in members], gold_mode, field)
    text = plain_text(value, field)
    text = extract(text, ("boxed", "hashes")) or text
    if "=" in text and is_identity(read_answer(prepare_gold(text))):
        raise Unusable(f"{field}: is an equation that always holds, so that it says nothing")
    return text


def listed(value: Any) -> list[Any] | None:
    """The members of an answer that is a list, or one written as JSON text; None for any other."""
    if isinstance(value, list):
        return value
    return json_list(value) if isinstance(value, str) else None


def is_missing(gold: str) -> bool:
    """Whether a gold is a word for a missing value, such as `nan`, `N/A` or `TODO`, or only punctuation."""
    word = _WRAPPING.sub("", gold).strip(" \t\n\\.!:;'\"()[]<>#").casefold()
    return word in _MISSING or not any(unicodedata.category(letter)[0] in "LNS" for letter in gold.replace("$", ""))


def gold_kind(gold: str, gold_mode: GoldMode) -> GoldKind:
    """What a gold looks like."""
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
        parted = next((one for one in unique if len(alternatives(prepare_gold(one))) > 1), None)
        if parted is not None:
            raise Unusable(f"{field}: lists {parted!r}, which is a list itself, where any one member is right")
    return ", ".join(unique)
