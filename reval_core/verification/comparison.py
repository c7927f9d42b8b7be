"""Algebraic comparison of answers. Runs in a worker, which may be killed at any time."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from reval_core.answers.reading import Reading
from reval_core.verification.agreement import Algebra, agree
from reval_core.verification.equations import same_equation
from reval_core.verification.identity import Undecided, number, same_function, symbols_of

# The relative tolerance for values computed in float arithmetic.
_RELATIVE = 1e-9


def is_correct(golds: list[str], answer: str, lenient: bool) -> bool:
    """Whether `answer` means the same as any of `golds`, all prepared by `reval_core.answers`."""
    return any(agree(gold, answer, lenient, _ALGEBRA) for gold in golds)


def _same_formula(gold: Reading, answer: Reading, lenient: bool, bound: bool) -> bool:
    """Whether two formulas are equal.

    In lenient mode, the only variable of an expression may have another name, and decimals are compared to six
    places. The same letter in another case does not count as another name. If the gold defines a function, its
    variable is `bound` and may have any name in both modes.
    """
    one, other = gold.term, answer.term
    assert one is not None, "formulas have a term"
    assert other is not None, "formulas have a term"
    if one == other:
        return True
    renamed = bound or (lenient and "symbol" not in (one.op, other.op) and not _of_other_case(one, other))
    try:
        if same_function(one, other, renamed):
            return True
        return lenient and _has_decimal(one, other) and _rounds_to(number(one), number(other))
    except (Undecided, KeyError):
        return False


def _of_other_case(one: Any, other: Any) -> bool:
    return {name.lower() for name in symbols_of(one)} == {name.lower() for name in symbols_of(other)}


def _has_decimal(*terms: Any) -> bool:
    """Whether these are numbers and one of them is written as a decimal."""
    return not any(map(symbols_of, terms)) and any(map(_decimal_within, terms))


def _decimal_within(term: Any) -> bool:
    return (term.op == "number" and term.name == "decimal") or any(map(_decimal_within, term.parts))


def _rounds_to(one: Any, other: Any) -> bool:
    size = max(abs(one), abs(other))
    return bool(
        abs(one - other) <= 5e-4 * size
        and abs(one - other) <= 1e-6
        and round(complex(one).real, 6) == round(complex(other).real, 6)
    )


def _same_otherwise(gold: str, answer: str, lenient: bool) -> bool:
    """Whether math-verify finds two formulas equal that the grammar does not cover (integrals, sums …)."""
    from math_verify import verify

    parsed = parsed_by_math_verify(gold), parsed_by_math_verify(answer)
    if parsed[0] is None or parsed[1] is None:
        return False
    found = verify(parsed[0], parsed[1], strict=True, allow_set_relation_comp=lenient, timeout_seconds=None)
    return bool(found) and _are_close(*parsed)


# The responses to a prompt are judged together, so its gold is parsed once.
@lru_cache(maxsize=256)
def parsed_by_math_verify(text: str) -> Any:
    """A formula parsed by math-verify's parser; None if it cannot be parsed. Symbols keep their case."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify.grader import should_treat_as_complex

    plain = normalize_latex(text, NormalizationConfig(malformed_operators=True, boxed="none"))
    try:
        return latex2sympy(
            plain,
            is_real=not should_treat_as_complex(plain),
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception:  # the parser raises arbitrary exceptions
        return None


def _are_close(one: Any, other: Any) -> bool:
    """Whether two numbers are equal relative to their size, which math-verify does not check; else True."""
    if not (getattr(one, "is_number", False) and getattr(other, "is_number", False)):
        return True
    try:
        values = [complex(side.doit().evalf(30)) for side in (one, other)]
    except (TypeError, ValueError, OverflowError, AttributeError):
        return False
    return abs(values[0] - values[1]) <= _RELATIVE * max(map(abs, values))


_ALGEBRA = Algebra(_same_formula, same_equation, _same_otherwise)
