"""Compares equations and inequalities, which are equal up to a nonzero factor."""

from __future__ import annotations

from fractions import Fraction

from reval_core.answers.grammar import Term
from reval_core.answers.reading import Reading
from reval_core.verification.identity import Undecided, is_zero, proportional, symbols_of

_ONE = Term("number", (), "integer", Fraction(1))
_DOWN = {"<", r"\le"}
_UP = {">": "<", r"\ge": r"\le"}


def same_equation(gold: Reading, answer: Reading) -> bool:
    """Whether two relations with two sides each hold for the same values of their variables.

    An equation that always holds is vacuous and equals none.
    """
    sides = [_sides(gold), _sides(answer)]
    if sides[0] is None or sides[1] is None:
        return False
    (one, sign), (other, other_sign) = _with_one_name_for_values(sides[0], sides[1])
    if sign != other_sign:
        return False
    try:
        if is_zero(one) or is_zero(other):
            return False
        factor = proportional(one, other)
        if not factor and sign in ("=", r"\ne"):
            factor = proportional(fraction_parts(one)[0], fraction_parts(other)[0])
    except Undecided:
        return False
    return factor == 1 or (factor == -1 and sign in ("=", r"\ne"))


def is_identity(relation: Reading) -> bool:
    """Whether an equation holds for all values of its variables: ``1 = 1``, ``x = x``."""
    if relation.kind not in ("relation", "assignment"):
        return False
    sides = _sides(relation)
    try:
        return sides is not None and sides[1] == "=" and is_zero(sides[0])
    except Undecided:
        return False


def _sides(relation: Reading) -> tuple[Term, str] | None:
    """The left side minus the right one, and the relation, with > and ≥ turned into < and ≤."""
    if relation.kind == "list" or len(relation.parts) != 2:
        return None
    left, right = (part.term for part in relation.parts)
    sign = "=" if relation.kind == "assignment" else relation.name
    if left is None or right is None or any(part.measure and part.measure.kinds for part in relation.parts):
        return None
    if sign in _UP:
        left, right, sign = right, left, _UP[sign]
    if sign not in {"=", r"\ne", *_DOWN}:
        return None
    return Term("add", (left, Term("neg", (right,)))), sign


def _with_one_name_for_values(
    gold: tuple[Term, str], answer: tuple[Term, str]
) -> tuple[tuple[Term, str], tuple[Term, str]]:
    """Rename f(x) to y if the other relation uses y."""
    if "y" in symbols_of(gold[0]) and "y" not in symbols_of(answer[0]):
        return gold, (_calls_as_y(answer[0]), answer[1])
    if "y" in symbols_of(answer[0]) and "y" not in symbols_of(gold[0]):
        return (_calls_as_y(gold[0]), gold[1]), answer
    return gold, answer


def _calls_as_y(term: Term) -> Term:
    if term.op == "call" and len(term.name) == 1:
        return Term("symbol", (), "y")
    return term._replace(parts=tuple(map(_calls_as_y, term.parts)))


def fraction_parts(term: Term) -> tuple[Term, Term]:
    """A term as a numerator and a denominator without nested fractions."""
    if term.op in ("group", "neg"):
        above, below = fraction_parts(term.parts[0])
        return Term(term.op, (above,)), below
    if term.op == "frac":
        (above, below), (other, under) = map(fraction_parts, term.parts)
        return _times(above, under), _times(below, other)
    if term.op == "mul":
        above, below = _ONE, _ONE
        for part in term.parts:
            over, under = fraction_parts(part)
            above, below = _times(above, over), _times(below, under)
        return above, below
    if term.op == "add":
        above, below = fraction_parts(term.parts[0])
        for part in term.parts[1:]:
            over, under = fraction_parts(part)
            above, below = Term("add", (_times(above, under), _times(over, below))), _times(below, under)
        return above, below
    if term.op == "power" and term.parts[1].op == "neg":
        above, below = fraction_parts(term.parts[0])
        exponent = term.parts[1].parts[0]
        return Term("power", (below, exponent)), Term("power", (above, exponent))
    return term, _ONE


def _times(one: Term, other: Term) -> Term:
    if one == _ONE or other == _ONE:
        return other if one == _ONE else one
    return Term("mul", (one, other))
