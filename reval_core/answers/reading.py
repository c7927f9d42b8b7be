r"""Parses answers by type: numbers with units, words, times, ratios, lists, intervals, matrices, equations.

An answer that is not understood completely counts as words and equals nothing else: ``half of 42`` is not 42.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from reval_core.answers.brackets import (
    CLOSING,
    CONJUNCTIONS,
    OPENING,
    as_text,
    cut,
    depth_of,
    outside,
    partner,
    parts_thousands,
    split,
    unwrapped,
    with_whole_numbers,
)
from reval_core.answers.grammar import GREEK, Term, Unread, read_formula
from reval_core.answers.numbers import Constant, value_of
from reval_core.answers.quantities import is_wordy, without_unit
from reval_core.answers.text import DOUBTS, as_decimal
from reval_core.answers.tokens import Token, tokens, words_of
from reval_core.answers.units import FILLERS, Measure

Kind = Literal[
    "formula", "words", "time", "ratio", "assignment", "relation", "tuple", "set", "list", "union", "matrix"
]

_MOST_TOKENS = 1500
_DEEPEST = 40
_RELATIONS = words_of(r"= < > \le \ge \ne \in \notin \approx \equiv \sim")
_SET_OPERATIONS = frozenset([r"\cup", r"\cap", r"\setminus"])
_ENVIRONMENTS = frozenset(["matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"])
_SYSTEMS = frozenset(["cases", "aligned", "align", "gathered", "array"])
_GLUED_CONJUNCTION = re.compile(r"(?<=[0-9)}\]])\s?(or|and)(?=[A-Z(\\$\[])")
_QUOTED_LIST = re.compile(r"\[\s*(?:'[^']*'|\"[^\"]*\")(?:\s*,\s*(?:'[^']*'|\"[^\"]*\"))*\s*\]")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-5][0-9])(?::([0-5][0-9]))?(am|pm|h|hours)?")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_NAMED_SETS = {
    "allrealnumbers": r"\mathbb{R}",
    "allreals": r"\mathbb{R}",
    "allintegers": r"\mathbb{Z}",
    "emptyset": r"\emptyset",
    "theemptyset": r"\emptyset",
}
_NAMING = words_of(r"\frac \angle \triangle \overline \bar \hat \tilde \vec \overrightarrow \mathbb \circ") | {
    "\\" + name for name in GREEK
}


@dataclass(frozen=True)
class Reading:
    """A parsed answer.

    Attributes:
        kind: The type of the answer.
        text: Its LaTeX without layout.
        parts: The members, sides, rows or value; empty for a formula.
        name: The pair of brackets, the relations between the sides, the conjunction of a list, or the name that a
            value is assigned to.
        term: The syntax tree of a formula; None if the grammar does not cover it.
        measure: The unit of a formula.
    """

    kind: Kind
    text: str
    parts: tuple[Reading, ...] = ()
    name: str = ""
    term: Term | None = None
    measure: Measure | None = None

    @property
    def value(self) -> Constant | None:
        """The exact value of a number, without its unit."""
        return None if self.term is None else value_of(self.term)


@lru_cache(maxsize=512)
def read_answer(text: str) -> Reading:
    """Parse a normalized answer."""
    if _QUOTED_LIST.fullmatch(text):
        members = [one[1] or one[2] or "" for one in _QUOTED.finditer(text)]
        text = ", ".join(member.replace("\\\\", "\\") for member in members)
    signs = tokens(_GLUED_CONJUNCTION.sub(r" \1 ", text))
    if len(signs) > _MOST_TOKENS or depth_of(signs) > _DEEPEST:
        return Reading("words", text)
    plain = unwrapped(_without_frame(signs))
    spaced = any(token.spaced for token in plain[1:])
    decimal = None if spaced else as_decimal("".join(token.text for token in plain))
    found = _read(plain if decimal is None else tokens(decimal))
    named = _NAMED_SETS.get("".join(token.text for token in plain).lower()) if found.kind == "words" else None
    return found if named is None else _read(tokens(named))


def read_gold(text: str) -> Reading:
    """Parse a normalized gold. Words after its number are ignored: ``14 \\text{ right triangles}``."""
    found = read_answer(text)
    if found.kind != "words":
        return found
    signs = tokens(text)
    start = next((place for place, token in enumerate(signs) if token.kind in ("word", "letters")), 0)
    numbered = (
        start
        and all(token.kind != "number" for token in signs[start:])
        and not any(map(_is_sign_of_doubt, signs[start:]))
    )
    value = read_answer(as_text(signs[:start])) if numbered else found
    return value if value.kind == "formula" and value.value is not None else found


def _is_sign_of_doubt(token: Token) -> bool:
    return token.text.lower() in DOUBTS or token.kind == "command"


def _read(signs: Sequence[Token]) -> Reading:
    groups = _groups(signs)
    if groups:
        return Reading("list", as_text(signs), groups)
    members = [unwrapped(member) for member in split(signs)]
    members = [member for member in members if member]
    if len(members) == 1:
        return _as_list(_expanded(_member(members[0])))
    if not members:
        return Reading("words", "")
    names = _shared_name(members)
    found = [one for member in names for one in _expanded(_member(member))]
    return Reading("list", as_text(signs), tuple(found), _conjunction(signs))


def _conjunction(signs: Sequence[Token]) -> str:
    """The conjunction between the members of a list, if it is unique."""
    words = {token.text.lower() for _, token in outside(signs) if token.text.lower() in CONJUNCTIONS}
    return words.pop() if len(words) == 1 else ""


def _groups(signs: Sequence[Token]) -> tuple[Reading, ...]:
    """The tuples of ``p = 5, q = 2; p = 7, q = 2``: members separated by commas, groups by semicolons."""
    stops = [place for place, token in outside(signs) if token.text == ";"]
    commas = [place for place, token in outside(signs) if token.text == "," and not parts_thousands(signs, place)]
    if not stops or not commas:
        return ()
    groups = [split(group) for group in cut(signs, stops)]
    if len({len(group) for group in groups}) != 1 or not all(member for group in groups for member in group):
        return ()
    return tuple(Reading("tuple", "", tuple(_value(_member(member)) for member in group), "()") for group in groups)


def _value(reading: Reading) -> Reading:
    return reading.parts[-1] if reading.kind == "assignment" else reading


def _as_list(found: Sequence[Reading]) -> Reading:
    return found[0] if len(found) == 1 else Reading("list", found[0].text, tuple(found))


def _expanded(found: Reading) -> list[Reading]:
    """Expand ± into two answers."""
    if found.kind == "assignment" and found.name != r"\notin":
        values = _expanded(found.parts[-1])
        if len(values) == 1:
            return [found]
        return [replace(found, parts=(*found.parts[:-1], value)) for value in values]
    if found.term is None or not _has_sign(found.term):
        return [found]
    return [replace(found, term=_signed(found.term, sign), text=f"{found.text} {sign}") for sign in ("pm", "mp")]


def _has_sign(term: Term) -> bool:
    return term.op == "plusminus" or any(map(_has_sign, term.parts))


def _signed(term: Term, plus: str) -> Term:
    parts = tuple(_signed(part, plus) for part in term.parts)
    if term.op == "plusminus":
        return parts[0] if term.name == plus else Term("neg", parts)
    return term._replace(parts=parts)


def _shared_name(members: Sequence[Sequence[Token]]) -> list[Sequence[Token]]:
    """The members of ``n = 2, 3, 4`` without the name that they share."""
    first = members[0]
    equals = [place for place, token in outside(first) if token.text == "="]
    bare = all(not any(token.text in _RELATIONS for _, token in outside(one)) for one in members[1:])
    if len(equals) == 1 and bare and len(members) > 1 and _is_name(first[: equals[0]]):
        return [first[equals[0] + 1 :], *members[1:]]
    return list(members)


def _member(signs: Sequence[Token]) -> Reading:
    """Parse one answer, without separators outside its brackets."""
    signs = _without_leading_words(unwrapped(signs))
    matrix = _matrix(signs)
    if matrix is not None:
        return matrix
    relations = [place for place, token in outside(signs) if token.text in _RELATIONS]
    if relations:
        return _relation(signs, relations)
    operations = [place for place, token in outside(signs) if token.text in _SET_OPERATIONS]
    if operations:
        parts = tuple(_member(part) for part in cut(signs, operations))
        return Reading("union", as_text(signs), parts, " ".join(signs[place].text for place in operations))
    return _bracketed(signs) or _clock_or_ratio(signs) or _quantity(signs)


def _relation(signs: Sequence[Token], places: Sequence[int]) -> Reading:
    sides = cut(signs, places)
    names = [signs[place].text for place in places]
    if r"\approx" in names:
        first = names.index(r"\approx")
        if len(names) == 1 and _is_name(sides[0]):
            names = ["="]
        else:
            # The exact value precedes ≈.
            sides, names = sides[: first + 1], names[:first]
    if not all(sides):
        # "= 5" states 5; "x >" is incomplete.
        stated = [side for side in sides if side]
        return _member(stated[0]) if len(stated) == 1 and set(names) == {"="} else Reading("words", as_text(signs))
    if not names:
        return _member(sides[0])
    if set(names) == {"="} and not _is_name(sides[0]) and len(sides) == 2 and _is_name(sides[1]):
        sides = sides[::-1]
    if _is_name(sides[0]) and (set(names) == {"="} or names in ([r"\in"], [r"\notin"])):
        name = as_text(sides[0]) if names[0] == "=" else names[0]
        parts = tuple(_read(unwrapped(side)) for side in sides)
        return Reading("assignment", as_text(signs), parts, name)
    return Reading("relation", as_text(signs), tuple(_member(side) for side in sides), " ".join(names))


def _is_name(signs: Sequence[Token]) -> bool:
    """Whether these tokens are only a name: ``x_1``, ``f(x)``, ``AB``, ``(p, q)``, ``\\text{Area}``."""
    if not signs or len(signs) > 24:
        return False
    texts = [token.text for token in signs]
    for place, token in enumerate(signs):
        if _is_doubt(token.text) or (token.kind == "command" and token.text not in _NAMING):
            return False
        plain = token.kind in ("letters", "word", "command") or token.text in tuple("()[]{}|,:_'")
        argument = (
            token.kind == "number"
            and place
            and (texts[place - 1] in ("_", "(", ",") or texts[max(0, place - 2) : place] == ["_", "{"])
        )
        if not plain and not argument:
            return False
    return any(token.kind in ("letters", "word", "command") for token in signs)


def _is_doubted(signs: Sequence[Token]) -> bool:
    return any(len(token.text) > 1 and _is_doubt(token.text) for token in signs)


def _is_doubt(word: str) -> bool:
    return word.lower() in DOUBTS and not word.isupper()


def _bracketed(signs: Sequence[Token]) -> Reading | None:
    """Parse a tuple, an interval or a set."""
    if len(signs) < 2 or signs[0].text not in OPENING or partner(signs) != len(signs) - 1:
        return None
    pair = signs[0].text + signs[-1].text
    inside = signs[1:-1]
    if pair == r"\{\}":
        bars = [place for place, token in outside(inside) if token.text in ("|", ":")]
        if len(bars) == 1:
            return _member(inside[bars[0] + 1 :])
        return Reading("set", as_text(signs), _members(inside), pair)
    if signs[0].text in (r"\lfloor", r"\lceil"):
        return None
    parts = split(inside, within=True)
    if len(parts) < 2:
        return None
    return Reading("tuple", as_text(signs), tuple(_member(part) for part in parts if part), pair)


def _members(signs: Sequence[Token]) -> tuple[Reading, ...]:
    parts = [unwrapped(part) for part in split(signs, within=True)]
    return tuple(one for part in parts if part for one in _expanded(_member(part)))


def _matrix(signs: Sequence[Token]) -> Reading | None:
    """Parse a matrix, or a system of equations as a list."""
    if signs and signs[0].text == "Matrix":
        inside = _bracketed(unwrapped(signs[1:]))
        return None if inside is None else _matrix_of(inside)
    if len(signs) > 2 and signs[0].text in OPENING and signs[1].text == r"\begin":
        closed = signs[-1].text in CLOSING or signs[-1].text == "."
        return _matrix(signs[1:-1] if closed else signs[1:])
    if len(signs) < 8 or signs[0].text != r"\begin" or signs[-4].text != r"\end":
        return None
    if sum(token.text == r"\begin" for token in signs) != 1:
        return None
    name = signs[2].text
    if name not in _ENVIRONMENTS | _SYSTEMS or signs[-2].text != name:
        return None
    body = signs[4:-4]
    if body and body[0].text == "{" and name == "array":
        body = body[partner(body) + 1 :]
    if body and body[0].text == "[":
        body = body[partner(body) + 1 :]
    rows = [row for row in cut(body, [place for place, token in outside(body) if token.text == r"\\"]) if row]
    if any(token.text in _RELATIONS for row in rows for _, token in outside(row)) or name in ("cases", "aligned"):
        plain = [[token for token in row if token.text != "&"] for row in rows]
        return Reading("list", as_text(signs), tuple(_member(row) for row in plain if row))
    cells = [cut(row, [place for place, token in outside(row) if token.text == "&"]) for row in rows]
    read = tuple(
        Reading("tuple", as_text(row), tuple(map(_member, row_cells)))
        for row, row_cells in zip(rows, cells, strict=True)
    )
    return Reading("matrix", as_text(signs), read)


def _matrix_of(rows: Reading) -> Reading:
    """The matrix ``Matrix([[1, 2], [3, 4]])``; a single row of numbers is a column, as in sympy."""
    if all(part.kind == "tuple" for part in rows.parts):
        return Reading("matrix", rows.text, tuple(replace(part, name="") for part in rows.parts))
    return Reading("matrix", rows.text, tuple(Reading("tuple", part.text, (part,)) for part in rows.parts))


def _clock_or_ratio(signs: Sequence[Token]) -> Reading | None:
    colons = [place for place, token in outside(signs) if token.text == ":"]
    if not colons:
        return None
    parts = cut(signs, colons)
    read = tuple(_member(part) for part in parts if part)
    ratio = read if len(read) == len(parts) and all(part.kind == "formula" for part in read) else ()
    plain = "".join(token.text for token in signs if token.text not in (".", "{", "}")).lower()
    clock = _CLOCK.fullmatch(plain)
    if clock is not None and int(clock[1]) <= 24:
        plain_ratio = ratio if not clock[4] and not any(part.startswith("0") for part in plain.split(":")) else ()
        text = f"{int(clock[1])}:{clock[2]}:{clock[3] or '00'}"
        return Reading("time", text, plain_ratio, name=(clock[4] or "").removeprefix("h"))
    return Reading("ratio", as_text(signs), ratio) if ratio else None


def _quantity(signs: Sequence[Token]) -> Reading:
    """Parse a formula with its unit, or words."""
    signs, measure = without_unit(with_whole_numbers(signs))
    try:
        _refuse_words(signs)
        return Reading("formula", as_text(signs), term=read_formula(signs), measure=measure)
    except Unread:
        pass
    if is_wordy(signs) or measure is not None or _is_doubted(signs):
        return Reading("words", as_text(signs))
    return Reading("formula", as_text(signs))


def _refuse_words(signs: Sequence[Token]) -> None:
    """Raise Unread for words that the grammar would parse as products of variables."""
    if _is_doubted(signs) or (not any(token.kind == "number" for token in signs) and is_wordy(signs)):
        raise Unread


def _without_leading_words(signs: Sequence[Token]) -> Sequence[Token]:
    """Remove "the answer is" and similar words before a number or a formula."""
    place = 0
    while (
        place < len(signs)
        and signs[place].kind in ("letters", "word")
        and signs[place].text.lower() in FILLERS
        and len(signs[place].text) > 1
    ):
        place += 1
    rest = signs[place:]
    if place and rest and rest[0].text == ":":
        rest = rest[1:]
    return rest if rest and (rest[0].kind in ("number", "sign", "command")) else signs


def _without_frame(signs: Sequence[Token]) -> Sequence[Token]:
    """Remove a final stop or exclamation mark after words, and enclosing quotation marks."""
    if (
        len(signs) > 1
        and signs[-1].text in ("!", ".")
        and signs[-2].kind in ("word", "letters")
        and len(signs[-2].text) > 1
    ):
        return _without_frame(signs[:-1])
    if len(signs) > 1 and signs[-1].text == "." and signs[-2].kind != "sign":
        return signs[:-1]
    if len(signs) > 2 and signs[0].text == signs[-1].text == '"':
        return signs[1:-1]
    return signs
