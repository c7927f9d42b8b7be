"""Scale factors of numbers in different units, and rounding."""

from __future__ import annotations

from fractions import Fraction

from reval_core.answers.grammar import Term
from reval_core.answers.numbers import Constant
from reval_core.answers.reading import Reading
from reval_core.answers.units import Measure

_DEGREE = (("angle", 1),)
_RADIAN = (("angle: radian", 1),)
_PERCENT = (("percent", 1),)


def scales(gold: Reading, answer: Reading, lenient: bool) -> list[tuple[Constant, Constant]]:
    """The pairs of factors to multiply gold and answer with before comparing them; empty if the units differ."""
    one = Constant(Fraction(1))
    kinds = [side.measure.kinds if side.measure else () for side in (gold, answer)]
    if sorted(kinds) == [_DEGREE, _RADIAN]:
        turn = Constant(Fraction(1, 180), 1, 1)
        return [(turn, one) if kinds[0] == _DEGREE else (one, turn)]
    if kinds[0] and kinds[1]:
        return (
            [(_size(gold), _size(answer))]
            if kinds[0] == kinds[1] and (lenient or _size(gold) == _size(answer))
            else []
        )
    found = [(one, one)]
    if _PERCENT in kinds:
        hundredths = [
            Constant(_size(side).fraction / 100) if side.measure and side.measure.kinds else one
            for side in (gold, answer)
        ]
        found = [] if _size(gold).fraction * _size(answer).fraction != 1 else found
        if lenient:
            found.append((hundredths[0], hundredths[1]))
    if _DEGREE in kinds and any(side.value is not None and side.value.pi for side in (gold, answer)):
        turned = [
            Constant(_size(side).fraction / 180, 1, 1) if side.measure and side.measure.kinds else one
            for side in (gold, answer)
        ]
        found = [(turned[0], turned[1])]
    return found


def scaled(term: Term, size: Constant) -> Term:
    if size == Constant(Fraction(1)):
        return term
    factor = Term("number", (), "exact", size.fraction)
    parts = (factor, Term("constant", (), "pi"), term) if size.pi else (factor, term)
    return Term("mul", parts)


def _size(reading: Reading) -> Constant:
    measure = reading.measure or Measure()
    return Constant(measure.size)


def is_decimal(term: Term) -> bool:
    return (term.op == "number" and term.name == "decimal") or any(map(is_decimal, term.parts))


def rounds_to(one: Constant, other: Constant) -> bool:
    """Whether two nonzero numbers are equal to six decimals and, if they are small, to four digits."""
    try:
        values = [float(one), float(other)]
    except OverflowError:
        return False
    size = max(map(abs, values))
    if abs(values[0] - values[1]) > 5e-4 * size:
        return False
    return round(values[0], 6) == round(values[1], 6) and min(map(abs, values)) > 0
