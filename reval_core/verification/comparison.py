"""Whether two answers mean the same, by math-verify. Runs in a worker, which may be killed at any moment."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from reval_core.answers import as_words

_BASE = re.compile(r"\(?\w{1,40}\)?_\{?(?:\\text\{)?(\d{1,3})\}{0,2}")
_DECIMAL_COMMA = re.compile(r"([+-]?\d{1,15}),(\d{1,15})")


def is_correct(golds: list[str], answer: str, lenient: bool) -> bool:
    """Whether `answer` means the same as any of `golds`, all prepared by `reval_core.answers`.

    Leniently a comma may be a decimal point, an inequality may be the interval that it describes, and the one
    variable of an expression may have another name.
    """
    if answer in golds:
        return True
    words = as_words(answer)
    if words is not None and words in map(as_words, golds):
        return True
    return any(
        not _of_other_base(gold, answer) and _equal(*_with_points(gold, answer, lenient), lenient) for gold in golds
    )


def _equal(gold_text: str, answer_text: str, lenient: bool) -> bool:
    from math_verify import verify

    answer = parse_boxed(answer_text)
    gold, decimals = with_precision(parse_boxed(gold_text))
    return verify(
        gold,
        answer,
        float_rounding=decimals,
        strict=not (lenient and _of_one_variable(gold) and _of_one_variable(answer)),
        allow_set_relation_comp=lenient,
        timeout_seconds=None,
    )


def _of_other_base(gold: str, answer: str) -> bool:
    """Whether these are numbers that name different bases, which math-verify does not read."""
    bases = [_BASE.fullmatch(text) for text in (gold, answer)]
    return bases[0] is not None and bases[1] is not None and bases[0][1] != bases[1][1]


def _with_points(gold: str, answer: str, lenient: bool) -> tuple[str, str]:
    """Gold and answer; leniently with the comma of one as a decimal point, where the other has a point."""
    if lenient and "." in answer and _DECIMAL_COMMA.fullmatch(gold):
        return gold.replace(",", "."), answer
    if lenient and "." in gold and _DECIMAL_COMMA.fullmatch(answer):
        return gold, answer.replace(",", ".")
    return gold, answer


def _of_one_variable(parsed: list[Any]) -> bool:
    """Whether this is an expression with one variable, and not just a name: a text answer is parsed as one.

    math-verify renames variables in the order of a set, so with two of them x - y would equal y - x.
    """
    from sympy import Basic, Symbol

    found = parsed[0] if parsed else None
    return isinstance(found, Basic) and not isinstance(found, Symbol) and len(found.free_symbols) == 1


# A prompt's responses come together, so its gold is parsed once for all of them.
@lru_cache(maxsize=256)
def parse_boxed(text: str) -> list[Any]:
    r"""What math-verify reads in ``\boxed{text}``, and nothing but that.

    Its default extraction falls back on the last number in the text, so that ``6 \vee 5`` would match 5.
    """
    from math_verify import LatexExtractionConfig, parse

    only_boxed = LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)
    return parse(rf"\boxed{{{text}}}", extraction_config=[only_boxed], parsing_timeout=None)


def with_precision(gold: list[Any]) -> tuple[list[Any], int]:
    r"""A parsed gold, and to how many decimals floats are rounded before they are compared with it.

    math-verify's rule is 6 decimals and an absolute tolerance of 1e-15, under which any two small numbers are
    equal. Here at least four significant digits of the gold count. Of a gold that is not exact at most twelve do:
    floats carry fifteen, and ``870000000.0`` must equal ``8.7 \times 10^8``.
    """
    try:
        size = abs(float(gold[0]))
        exponent = math.floor(math.log10(size))
        exact = gold[0].is_rational
    except Exception:  # not a number, or 0: sympy raises as it pleases
        return gold, 6
    decimals = max(3 - exponent, 6 if exact else min(6, 11 - exponent))
    return ([gold[0].evalf()] if size < 1e-6 else gold), decimals
