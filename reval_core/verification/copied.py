r"""Detects unfinished answers: copies of the problem's own formula, or answers in another form than requested.

Algebra would find them equal to the gold, and a policy that is rewarded for copying a formula learns to copy. This
module works on text only.
"""

import re
from itertools import islice

from reval_core.answers import tidy
from reval_core.answers.grammar import Term
from reval_core.answers.reading import read_answer

# Excludes the equals sign of a lower limit: \sum_{i=1}.
_SIDES = re.compile(r"(?:=|\\approx(?![a-z])|\\equiv(?![a-z]))(?![^{}]{0,80}\})")
# Text commands contain units, in which "-" and "/" are not operators ("foot-pounds", "m/s").
_LETTERS = re.compile(
    r"\\(?:text|mathrm|mbox|textrm)\s*\{(?:[A-Za-z .,/()~]|(?<=[A-Za-z])-(?=[A-Za-z]))*\}"
    r"(?:\s*\^\s*\{?-?[0-9]\}?)?"
)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?")
_SCIENTIFIC = re.compile(
    r"[0-9][0-9.,]*\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*[+-]?\s*[0-9]+\s*\}|[+-]?[0-9]+)"
)
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|big|Big)(?![A-Za-z])")
_THIN_SPACE = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])")
_FUNCTION = (
    r"\\?(?<![A-Za-z])(?:gcd|lcm|min|max|log|ln|exp|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|det)(?![a-z])"
    r"|\\(?:sum|prod|i*int|oint|lim|[dt]?binom|choose|div|mod|bmod|lfloor|lceil|vert|begin)(?![A-Za-z])"
    r"|\||(?<=[0-9A-Za-z)}])\s*!"
)
_SIGN = r"(?<=[0-9A-Za-z)}\].!%])\s*(?:[+-]|\\pm(?![a-z])|\\mp(?![a-z]))"
_PRODUCT = r"(?:\\times|\\cdot|\\ast|\*)(?![A-Za-z])\s*[0-9(\\{.+-]"
_SIDE_BY_SIDE = (
    r"\)\s*\(|[0-9]\s*\(\s*[-0-9.]|\)\s*[0-9]"
    r"|\}\s*\\[dt]?frac(?![a-z])|\\sqrt\s*(?:\{[^{}]*\}|[0-9])\s*\\sqrt(?![a-z])"
)
_WRITTEN = r"\^|\\sqrt(?![a-z])|\\times|\\cdot|/|\\[dt]?frac(?![a-z])"
_FORMULA = re.compile("|".join((_FUNCTION, _SIGN, _PRODUCT, _SIDE_BY_SIDE, _WRITTEN)))
_FACTOR = re.compile(r"\b(?:factor(?:i[sz]e|ed)?|as a product)\b", re.IGNORECASE)
_EXPAND = re.compile(r"\b(?:expand(?:ed)?|multiply out|without parentheses)\b", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*([0-9]{1,30})\s*\}|([0-9]))\s*(?:\{\s*([0-9]{1,30})\s*\}|([0-9]))")
# What may differ between two spellings of a formula: spaces, delimiters, braces, the size of brackets.
_NOTHING = re.compile(r"(?:\s|[${}]|\\[()\[\],;:! ]|\\(?:left|right|displaystyle)(?![A-Za-z]))+")
_MATHEMATICS = re.compile(r"\$[^$]+\$|\\\([^$]+?\\\)|\\\[[^$]+?\\\]")
_MOST_FORMULAS = 40
_LONGEST_FORMULA = 300
_SAME_COMMAND = re.compile(r"\\[dt](?=frac|binom)")


def is_copied(answer: str, problem: str, golds: tuple[str, ...]) -> bool:
    """Whether an answer is a formula from the problem's text, unless a gold is written in the same way.

    Spaces, delimiters, braces, units and the notation of fractions are ignored.
    """
    if not problem or _FORMULA.search(_plain(answer)) is None:
        return False
    stated = _sides(answer)[-1:]
    if any(_signs(side)[0] == _signs(gold)[0] for side in (answer, *stated) for gold in golds):
        return False
    return _occurs_in(_signs(answer)[0], problem) or _is_rearranged(answer, problem, golds)


def _is_rearranged(answer: str, problem: str, golds: tuple[str, ...]) -> bool:
    """Whether an answer is a whole formula of the problem with reordered terms or factors."""
    term = _term(answer)
    if term is None or any(known is not None and _sorted(known) == _sorted(term) for known in map(_term, golds)):
        return False
    formulas = islice(_MATHEMATICS.finditer(problem), _MOST_FORMULAS)
    stated = (_term(tidy(formula[0])) for formula in formulas if len(formula[0]) <= _LONGEST_FORMULA)
    return _sorted(term) in [_sorted(one) for one in stated if one is not None]


def _sorted(term: Term) -> Term:
    """A formula without brackets, with terms and factors in canonical order."""
    if term.op == "group":
        return _sorted(term.parts[0])
    parts = [_sorted(part) for part in term.parts]
    if term.op in ("add", "mul"):
        parts = sorted(inner for part in parts for inner in (part.parts if part.op == term.op else (part,)))
        return Term(term.op, tuple(parts))
    return term._replace(parts=tuple(parts))


def lacks_requested_form(answer: str, problem: str, golds: tuple[str, ...]) -> bool:
    """Whether a problem asks to factor or to expand, the golds have that form, and the answer does not."""
    terms = [_term(text) for text in (answer, *golds)]
    if not problem or any(term is None for term in terms):
        return False
    stated, *known = (term for term in terms if term is not None)
    if _FACTOR.search(problem) and all(map(_is_factored, known)):
        return not _is_factored(stated)
    return bool(_EXPAND.search(problem)) and not any(map(_has_product, known)) and _has_product(stated)


def _term(text: str) -> Term | None:
    reading = read_answer(text)
    return (reading.parts[-1] if reading.kind == "assignment" else reading).term


def _is_factored(term: Term) -> bool:
    """Whether a term is a product or a power that contains a sum: ``2(x+1)``, ``(x-1)^2``."""
    while term.op in ("neg", "group"):
        term = term.parts[0]
    return term.op in ("mul", "power") and _has_product(term)


def _has_product(term: Term) -> bool:
    """Whether a term contains a sum that is multiplied or raised to a power."""
    factors = term.parts[:1] if term.op == "power" else term.parts
    sums = any(part.op == "group" and part.parts[0].op == "add" for part in factors)
    raised = any(part.op == "power" and _has_product(part) for part in term.parts)
    return (term.op in ("mul", "power") and (sums or raised)) or any(map(_has_product, term.parts))


def _sides(answer: str) -> list[str]:
    return [side for side in _SIDES.split(answer) if side.strip()]


def _plain(text: str) -> str:
    """A formula without units, layout and scientific notation, whose symbols are not operations."""
    text = _DEGREES.sub(" ", _LETTERS.sub(" ", _LAYOUT.sub("", text)))
    return _SCIENTIFIC.sub("1", _THIN_SPACE.sub(" ", text))


def _occurs_in(signs: str, problem: str) -> bool:
    """Whether the problem contains these symbols as a separate formula, not as part of a longer one."""
    text, gaps = _signs(problem)
    start = text.find(signs)
    while start >= 0:
        end = start + len(signs)
        before, after = text[start - 1 : start], text[end : end + 1]
        apart_before = start in gaps or not (before.isalnum() or before == "\\")
        apart_after = end in gaps or not after.isalnum()
        if apart_before and apart_after and before not in set("+-*/^_") and after not in set("+-*/^_!"):
            return True
        start = text.find(signs, start + 1)
    return False


def _signs(text: str) -> tuple[str, set[int]]:
    """A text without spaces, delimiters and braces, and the positions where they were removed."""
    kept: list[str] = []
    gaps: set[int] = set()
    length = 0
    text = _LETTERS.sub(" ", _FRACTION.sub(_with_slash, text))
    for piece in _NOTHING.split(_SAME_COMMAND.sub(r"\\", text)):
        gaps.add(length)
        kept.append(piece)
        length += len(piece)
    return "".join(kept), gaps


def _with_slash(fraction: re.Match[str]) -> str:
    return f"{fraction[1] or fraction[2]}/{fraction[3] or fraction[4]}"
