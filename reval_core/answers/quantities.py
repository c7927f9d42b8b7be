"""Separates a number from its unit, and both from words and products of variables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reval_core.answers.brackets import CONJUNCTIONS, outside, partner, unwrapped
from reval_core.answers.grammar import FUNCTIONS
from reval_core.answers.tokens import Token, words_of
from reval_core.answers.units import FILLERS, Measure, read_measure, unit_named

_MONEY = words_of("$ £ € ₹ ¥ ₩ ₽")
_UNIT_SIGNS = frozenset(["%", r"\permil", r"\circ", *_MONEY])
_UNIT_LETTERS = words_of("m g s h L N J W V A K")
_GLUED_UNITS = words_of("cm mm km kg ft lbs mph ml hr hrs min sec nm kph kmh")
_BASE = re.compile(r"-?([0-9]{1,60})_\{?\(?([0-9]{1,2})\)?\}?")


def is_wordy(signs: Sequence[Token]) -> bool:
    """Whether the tokens contain text that is not a product of variables."""
    runs = [token.text for token in signs if token.kind in ("letters", "word")]
    names = {signs[place + 2].text for place, token in enumerate(signs[:-2]) if token.text in (r"\begin", r"\end")}
    letters = [run for run in runs if run not in names]
    if any(token.kind == "word" and (len(token.text) > 1 or not token.text.isascii()) for token in signs):
        return True
    several = sum(len(run) > 1 for run in letters) > 1 and all(token.kind == "letters" for token in signs)
    return several or any(len(run) >= 3 for run in letters) or any(run in CONJUNCTIONS for run in letters)


def without_unit(signs: Sequence[Token]) -> tuple[Sequence[Token], Measure | None]:
    """The tokens of a number without its unit, and the unit; None if there is none."""
    if (len(signs) > 1 and signs[0].text in _MONEY) or (signs and signs[0].text in (r"\circ",)):
        inner, measure = without_unit(signs[1:])
        return (inner, measure) if measure is not None else (inner, read_measure(signs[:1]))
    if len(signs) > 2 and signs[0].text == "-" and signs[1].text in _MONEY:
        return [signs[0], *signs[2:]], read_measure(signs[1:2])
    if len(signs) > 1 and signs[0].kind != "number" and signs[-1].kind == "number" and _is_money(signs[0]):
        dotted = signs[1].text == "." and len(signs) > 2
        return signs[2 if dotted else 1 :], read_measure(signs[:1])
    if len(signs) > 1 and signs[-1].text in (r"\min", r"\sec") and signs[-2].kind == "number":
        return signs[:-1], read_measure([Token("word", signs[-1].text[1:])])
    if any(token.kind == "command" and token.text[1:] in FUNCTIONS for token in signs):
        return signs, None
    base = _BASE.fullmatch("".join(token.text for token in signs)) if len(signs) < 8 else None
    if (
        base is not None
        and _is_of_base(base[1], int(base[2]))
        and sum(token.kind == "number" for token in signs) == 2
    ):
        return [token for token in signs if token.text == "-"] + [Token("number", base[1])], Measure(
            ((f"base {base[2]}", 1),)
        )
    if len(signs) > 1 and signs[0].kind == "number" and signs[1].spaced and signs[1].text in _UNIT_LETTERS:
        measure = read_measure(signs[1:]) if len(signs) == 2 or signs[2].text == "/" else None
        if measure is not None:
            return signs[:1], measure
    for place, token in outside(signs):
        if place and _may_begin_unit(signs, place, token):
            measure = read_measure(_on_one_line(signs[place:]))
            return (unwrapped(signs[:place]), measure) if measure is not None else (signs, None)
    return signs, None


def _on_one_line(unit: Sequence[Token]) -> Sequence[Token]:
    """A unit with a slash in place of a fraction: ``\\frac{\\text{m}}{\\text{s}}``."""
    if unit[0].text != r"\frac":
        return unit
    middle = partner(unit[1:]) + 2
    return [*unwrapped(unit[1:middle]), Token("sign", "/"), *unwrapped(unit[middle:])]


def _is_of_base(digits: str, base: int) -> bool:
    return 2 <= base <= 36 and all(int(digit) < base for digit in digits)


def _is_money(token: Token) -> bool:
    unit = unit_named(token.text) if len(token.text) > 1 else None
    return unit is not None and unit.kind.startswith("money")


def _may_begin_unit(signs: Sequence[Token], place: int, token: Token) -> bool:
    if token.text in _UNIT_SIGNS:
        return True
    if token.text == r"\frac":
        return [one.kind for one in signs[place + 1 : place + 3]] == ["sign", "word"]
    if token.text == "^":
        return [one.text for one in signs[place + 1 : place + 3] if one.text != "{"][:1] == [r"\circ"]
    if token.kind not in ("word", "letters") or (token.kind == "letters" and len(token.text) < 2):
        return False
    before = signs[:place]
    if is_wordy(before) or all(one.kind in ("letters", "word") and len(one.text) > 1 for one in before):
        return False
    if token.kind == "word":
        return True
    if token.kind == "letters" and len(token.text) > 1:
        known = (
            unit_named(token.text) is not None
            or token.text.lower() in FILLERS
            or token.text.lower() in ("square", "sq", "cubic", "in")
        )
        return known and (token.spaced or token.text in _GLUED_UNITS or len(token.text) > 3)
    return False
