r"""Parses a gold: its kind, and the spans of its text that are values.

This does not use the audited rules. Whatever it cannot parse has the kind ``other`` and gets fewer variants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from reval_core.auditing.numerals import same, value_of
from reval_core.config import GoldMode
from reval_core.problems.golds import LONGEST_GOLD

Kind = Literal[
    "integer", "decimal", "float", "fraction", "number", "expression",
    "percent", "degrees", "money", "quantity", "based", "ratio", "time",
    "list", "tuple", "interval", "matrix", "equation", "inequality",
    "letter", "words", "prose", "other",
]  # fmt: skip
"""`float`: in Python notation (``8.7e8``). `number`: any other constant, such as a surd. `letter`: a choice.
`list`: several answers, in any order."""

NUMBERS: frozenset[Kind] = frozenset(["integer", "decimal", "fraction", "number"])

Span = tuple[int, int]

_DELIMITERS = re.compile(r"(?<!\\)\$|\\[()\[\]]|\n")
_THOUSANDS = re.compile(r"(?<=[0-9]),\\!\s*(?=[0-9]{3})")
_PLAIN_NUMBER = r"[+-]?(?:\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?|\d*\.\d+|\d+)"
_FRACTION = r"[+-]?(?:\\[dt]?frac\{-?\d+\}\{\d+\}|\\[dt]?frac\d\d|\d+/\d+)"
_ANY_NUMBER = rf"(?:{_PLAIN_NUMBER}|{_FRACTION})"
_UNIT = r"[~\s]*\\(?:text|mbox|mathrm)\s*\{[A-Za-z .]+\}(?:\s*\^\s*\{?[23]\}?)?"
_COLON = r"\s*(?:\\!)?:(?:\\!)?\s*"
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("letter", re.compile(r"(?:\\text(?:bf)?\{)?\(?[A-J]\)?\}?")),
    ("integer", re.compile(r"[+-]?(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d+)")),
    ("decimal", re.compile(r"[+-]?\d*\.\d+")),
    ("float", re.compile(r"[+-]?\d+(?:\.\d*)?[eE][+-]?\d{1,2}")),
    ("fraction", re.compile(_FRACTION)),
    ("percent", re.compile(rf"(?P<leaf>{_ANY_NUMBER})\s*\\?%")),
    ("degrees", re.compile(rf"(?P<leaf>{_ANY_NUMBER})\s*\^\s*(?:\{{\\circ\}}|\\circ)")),
    ("money", re.compile(rf"\\\$\s*(?P<leaf>{_ANY_NUMBER})")),
    ("quantity", re.compile(rf"(?P<leaf>{_ANY_NUMBER})(?P<unit>{_UNIT})")),
    ("quantity", re.compile(rf"(?P<leaf>[^,;=<>]*?[0-9}}])(?P<unit>{_UNIT})")),
    ("based", re.compile(r"(?P<leaf>-?\d+)_\{?\(?(?P<base>\d+)\)?\}?")),
    ("time", re.compile(rf"\d{{1,2}}{_COLON}\d\d\s*(?:\\text\s*\{{)?\s*[AaPp]\.?[Mm]\.?\}}?")),
    ("ratio", re.compile(rf"\d+(?:{_COLON}\d+)+")),
    ("words", re.compile(r"(?:\\text(?:bf|rm|it)?\s*\{)?[A-Za-z][A-Za-z'-]+(?:[ ][A-Za-z'-]+)*\}?")),
)
_SEPARATOR = re.compile(r"[,;]|\\text\s*\{\s*(?:,\s*)?(?:or|and)\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")
_THIN_SPACE = re.compile(r"\\[,;:! ]")
_COMMA = re.compile(r"[,;]")
_GROUP_OF_THREE = re.compile(r"(?<=[0-9]),[0-9]{3}(?![0-9])")
_RELATION = re.compile(r"=|\\(?:le|leq|leqslant|ge|geq|geqslant)(?![a-z])|<|>")
_CELL_END = re.compile(r"&|\\\\")
_MATRIX = re.compile(r"\\begin\{([pbv]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_OPENED = re.compile(r"(?:\\left\s*)?(\\\{|[(\[])")
_CLOSED = re.compile(r"\s*(?:\\right\s*)?(\\\}|[)\]])$")
_MISSING = re.compile(
    r"(?:none|null|nil|nan|n/?a|unknown|undefined|missing|todo|tbd|no answer|not available|not given|proof|see .*"
    r"|[?.…_-]+)",
    re.IGNORECASE,
)
_UNIT_ALONE = re.compile(
    r"(?:\\?%|\^\{?\\circ\}?|\\?\$|cm|mm|km|m|kg|g|mg|ft|feet|inch(?:es)?|miles?|hours?|minutes?|seconds?|days?|degrees?|"
    r"dollars?|cents?|percent|units?|square units?|radians?)"
)
_NAME = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_CONSTANT = re.compile(
    r"\\(?:pi|[dt]?frac|sqrt|binom|cdot|times|div|left|right|log|ln|exp|(?:arc)?(?:sin|cos|tan)|cot|sec|csc)"
)
_WORD = re.compile(r"[A-Za-z]{2,}")
_OF_LATEX = re.compile(r"\\[A-Za-z]+|[_^]\{?[A-Za-z]+")
_MOST_WORDS = 6


@dataclass(frozen=True)
class Gold:
    """A gold's text without delimiters, its kind, and its parts."""

    kind: Kind
    text: str
    leaves: tuple[Span, ...] = ()
    """Spans of values that can be replaced one at a time."""
    members: tuple[str, ...] = ()
    """The members of a list, tuple or interval, or the sides of a relation."""

    def leaf(self, span: Span) -> str:
        """Return the value in a span."""
        return self.text[span[0] : span[1]]

    def with_leaf(self, span: Span, value: str) -> str:
        """Return the text with the value of a span replaced."""
        return self.text[: span[0]] + value + self.text[span[1] :]


def read_gold(gold: str, gold_mode: GoldMode = "all") -> Gold:
    """Parse a gold."""
    text = _THOUSANDS.sub(",", _DELIMITERS.sub(" ", gold)).strip()
    text = re.sub(r"(?<!\\right)\.$", "", text).strip()
    return _read(text)


def suspicions(gold: str, gold_mode: GoldMode) -> list[str]:
    """Return the reasons why a gold may be unusable, from its text alone."""
    read = read_gold(gold, gold_mode)
    found = {
        "missing-value word": _MISSING.fullmatch(_plain(read.text)) is not None,
        "only a unit": _UNIT_ALONE.fullmatch(_plain(read.text)) is not None,
        "identity": read.kind == "equation" and _is_identity(read.text),
        "brackets do not match": not _balanced(read.text),
        "prose": read.kind == "prose" or len(read.text) > LONGEST_GOLD,
        "several answers": read.kind == "list" and gold_mode == "all",
        "letter without a choice": read.kind == "letter" and gold_mode != "choice",
        "no letter": gold_mode == "choice" and read.kind != "letter",
    }
    return [reason for reason, holds in found.items() if holds]


def _read(text: str) -> Gold:
    if len(_WORD.findall(_OF_LATEX.sub(" ", text))) > _MOST_WORDS:
        return Gold("prose", text)
    for kind, pattern in _PATTERNS:
        match = pattern.fullmatch(text)
        if match:
            leaf = match.span("leaf") if "leaf" in pattern.groupindex else (0, len(text))
            if "leaf" in pattern.groupindex and value_of(text[slice(*leaf)]) is None:
                continue
            return Gold(kind, text, () if kind in ("letter", "words", "time", "ratio") else (leaf,))
    return _structure(text) or _formula(text)


def _structure(text: str) -> Gold | None:
    """Parse a list, tuple, interval, matrix, equation or inequality; None for anything else."""
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        return Gold("matrix", text, tuple(_trimmed(text, matrix.span(2), _CELL_END)))
    if r"\cup" in text:
        parts = list(_trimmed(text, (0, len(text)), re.compile(r"\\cup(?![a-z])")))
        return Gold("interval", text, _inner_leaves(text, parts))
    members = list(_trimmed(text, (0, len(text)), _SEPARATOR))
    if len(members) > 1:
        return Gold("list", text, _inner_leaves(text, members), tuple(text[a:b] for a, b in members))
    return _bracketed(text) or _relation(text)


def _bracketed(text: str) -> Gold | None:
    opened, closed = _OPENED.match(text), _CLOSED.search(text)
    if (
        not opened
        or not closed
        or opened.end() > closed.start()
        or not _balanced(text[opened.end() : closed.start()])
    ):
        return None
    members = list(_trimmed(text, (opened.end(), closed.start()), _COMMA))
    if len(members) < 2:
        return None
    signs = opened[1] + closed[1]
    kind: Kind = "list" if signs == r"\{\}" else "tuple"
    if len(members) == 2 and (signs in ("(]", "[)") or r"\infty" in text):
        kind = "interval"
    return Gold(kind, text, _inner_leaves(text, members), tuple(text[a:b] for a, b in members))


def _relation(text: str) -> Gold | None:
    sides = list(_trimmed(text, (0, len(text)), _RELATION))
    if len(sides) != 2 or value_of(text[slice(*sides[0])]) == 0:
        return None
    kind: Kind = "equation" if "=" in text[sides[0][1] : sides[1][0]] else "inequality"
    leaf = sides[1] if value_of(text[slice(*sides[1])]) is not None else None
    return Gold(kind, text, () if leaf is None else (leaf,), tuple(text[a:b] for a, b in sides))


def _formula(text: str) -> Gold:
    if value_of(text) is None:
        return Gold("other", text)
    symbols = [name for name in _NAME.findall(text) if not _CONSTANT.fullmatch(name)]
    return Gold("expression" if symbols else "number", text, ((0, len(text)),))


def _inner_leaves(text: str, spans: list[Span]) -> tuple[Span, ...]:
    """Return the leaves of parts of a text, skipping a part that is the whole text (a dangling separator)."""
    parts = [(start, end) for start, end in spans if end - start < len(text)]
    return tuple(
        (start + first, start + last) for start, end in parts for first, last in _read(text[start:end]).leaves
    )


def _trimmed(text: str, within: Span, separator: re.Pattern[str]) -> Iterator[Span]:
    """Yield the non-empty stripped spans between separators that are outside all brackets."""
    start = place = within[0]
    depth = 0
    while place < within[1]:
        if spaced := _THIN_SPACE.match(text, place):
            place = spaced.end()
            continue
        found = separator.match(text, place) if depth == 0 else None
        grouped = separator is _SEPARATOR and _GROUP_OF_THREE.match(text, place)
        if found and found.end() <= within[1] and not grouped:
            yield from _stripped(text, start, place)
            start = place = found.end()
            continue
        depth += (text[place] in "([{") - (text[place] in ")]}")
        place += 1
    yield from _stripped(text, start, within[1])


def _stripped(text: str, start: int, end: int) -> Iterator[Span]:
    part = text[start:end]
    if part.strip():
        yield start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def _plain(text: str) -> str:
    return re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", text).strip()


def _is_identity(text: str) -> bool:
    one, other = (text[slice(*span)] for span in _trimmed(text, (0, len(text)), _RELATION))
    return same(one, other) or one == other


def _balanced(text: str) -> bool:
    """Return whether brackets are balanced; those of half-open intervals may differ in kind."""
    depth = 0
    for sign in re.findall(r"\\.|[{}()\[\]]", text):
        depth += (sign in "{([") - (sign in "})]")
        if depth < 0:
            return False
    return depth == 0
