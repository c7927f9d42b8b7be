"""Operations on lists of tokens: nesting of brackets, splitting, and conversion back to LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from reval_core.answers.tokens import Token

OPENING = frozenset(["(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"])
CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"])
SEPARATORS = frozenset([",", ";"])
CONJUNCTIONS = frozenset(["and", "or"])


def depth_of(signs: Sequence[Token]) -> int:
    """The maximum nesting depth of brackets."""
    depth = deepest = 0
    for token in signs:
        depth += (token.text in OPENING) - (token.text in CLOSING)
        deepest = max(deepest, depth)
    return deepest


def unwrapped(signs: Sequence[Token]) -> Sequence[Token]:
    """Remove outer brackets that contain a single answer: ``{5}``, ``(5)``, ``\\text{(A)}``."""
    while (
        len(signs) > 2
        and signs[0].text in ("(", "{")
        and partner(signs) == len(signs) - 1
        and signs[-1].text in (")", "}")
    ):
        if signs[0].text == "(" and (len(split(signs[1:-1], within=True)) > 1 or signs[-1].text != ")"):
            break
        signs = signs[1:-1]
    return signs


def outside(signs: Sequence[Token]) -> Iterator[tuple[int, Token]]:
    """The positions and tokens outside all brackets and environments."""
    depth = 0
    for place, token in enumerate(signs):
        if token.text in OPENING or token.text == r"\begin":
            depth += 1
        elif token.text in CLOSING or token.text == r"\end":
            depth -= 1
        elif depth == 0:
            yield place, token


def partner(signs: Sequence[Token]) -> int:
    """The position of the bracket that closes the first one; -1 if there is none."""
    depth = 0
    for place, token in enumerate(signs):
        depth += (token.text in OPENING) - (token.text in CLOSING)
        if depth == 0:
            return place
    return -1


def split(signs: Sequence[Token], within: bool = False) -> list[Sequence[Token]]:
    """Split a list into its members, at commas, semicolons, "and" and "or" outside all brackets.

    Args:
        signs: The tokens.
        within: Whether the list is inside brackets. Then it is only split at commas and semicolons, and at every
            comma; otherwise not at those of numbers such as 1,657.
    """
    places = [
        place
        for place, token in outside(signs)
        if (token.text in SEPARATORS and (within or not parts_thousands(signs, place)))
        or (not within and token.kind != "sign" and token.text.lower() in CONJUNCTIONS)
    ]
    return cut(signs, places)


def parts_thousands(signs: Sequence[Token], place: int) -> bool:
    """Whether a comma is a thousands separator."""
    if place == 0 or place + 1 >= len(signs) or signs[place].text != ",":
        return False
    before, after = signs[place - 1], signs[place + 1]
    if before.kind != "number" or after.kind != "number" or signs[place].spaced or after.spaced:
        return False
    first = place < 2 or signs[place - 2].text != ","
    fits = re.fullmatch(r"[1-9][0-9]{0,2}" if first else r"[0-9]{3}", before.text)
    return (
        fits is not None
        and re.fullmatch(r"[0-9]{3}(?:\.[0-9]*)?", after.text) is not None
        and _ends(signs, place + 1)
    )


def _ends(signs: Sequence[Token], place: int) -> bool:
    """Whether all remaining groups of the number have three digits."""
    while place + 2 < len(signs) and signs[place + 1].text == "," and not signs[place + 2].spaced:
        if re.fullmatch(r"[0-9]{3}(?:\.[0-9]*)?", signs[place + 2].text) is None:
            return False
        place += 2
    return True


def cut(signs: Sequence[Token], places: Sequence[int]) -> list[Sequence[Token]]:
    starts = [0, *[place + 1 for place in places]]
    return [signs[start:end] for start, end in zip(starts, [*places, len(signs)], strict=True)]


def as_text(signs: Sequence[Token]) -> str:
    """The tokens as LaTeX."""
    pieces: list[str] = []
    for token in signs:
        apart = bool(pieces) and (token.spaced or (pieces[-1][:1] == "\\" and pieces[-1][1:].isalpha()))
        if apart and token.kind in ("letters", "number"):
            pieces.append(" ")
        pieces.append(rf"\text{{ {token.text} }}" if token.kind == "word" and len(token.text) > 1 else token.text)
    return "".join(pieces)


def with_whole_numbers(signs: Sequence[Token]) -> list[Token]:
    """The tokens with numbers such as ``1,657`` joined into one token."""
    found: list[Token] = []
    joined = False
    commas = {place for place, token in outside(signs) if token.text == "," and parts_thousands(signs, place)}
    for place, token in enumerate(signs):
        if place in commas:
            joined = True
            continue
        if joined:
            found[-1] = found[-1]._replace(text=found[-1].text + token.text)
        else:
            found.append(token)
        joined = False
    return found
