"""Exact values of formulas, and whether a number is in finished form or still to be computed.

A value is a fraction times a square root times a power of π, which suffices to compare most numbers exactly without
algebra. Sizes are checked before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from reval_core.answers.grammar import Term, is_signed_integer

_MOST_BITS = 200_000
_LARGEST_RADICAND = 10**12
_MOST_BITS_SPELLED = 2_000
_LARGEST_FACTOR_TRIED = 10_000


class Constant(NamedTuple):
    """`fraction` · √`radicand` · π^`pi` with a square-free radicand, so that equal values have equal fields."""

    fraction: Fraction
    radicand: int = 1
    pi: int = 0

    def __float__(self) -> float:
        return float(self.fraction) * math.sqrt(self.radicand) * math.pi**self.pi


ZERO = Constant(Fraction(0))
_TWO = Constant(Fraction(2))
_SQUARE = Term("number", (), "integer", Fraction(2))


def value_of(term: Term) -> Constant | None:
    """The exact value of a term, or None if it has another form, is undefined or is too large to compute."""
    try:
        return _value(term)
    except (ZeroDivisionError, OverflowError):
        return None


def _value(term: Term) -> Constant | None:
    if term.op == "number":
        return Constant(term.value)
    if term.op == "constant":
        return Constant(Fraction(1), 1, 1) if term.name == "pi" else None
    rule = _RULES.get(term.op)
    if rule is None:
        return None
    values = []
    for part in term.parts:
        value = _value(part)
        if value is None or _bits(value) > _MOST_BITS:
            return None
        values.append(value)
    return _folded(rule, values) if term.op in ("add", "mul") else rule(*values)


def _folded(rule: Callable[[Constant, Constant], Constant | None], values: list[Constant]) -> Constant | None:
    found: Constant | None = values[0]
    for value in values[1:]:
        if found is None or _bits(found) > _MOST_BITS:
            return None
        found = rule(found, value)
    return found


def _bits(value: Constant) -> int:
    return value.fraction.numerator.bit_length() + value.fraction.denominator.bit_length()


def _normal(fraction: Fraction, radicand: int = 1, pi: int = 0) -> Constant:
    return Constant(fraction, radicand, pi) if fraction else ZERO


def _add(one: Constant, other: Constant) -> Constant | None:
    if not other.fraction or not one.fraction:
        return one if one.fraction else other
    if (one.radicand, one.pi) != (other.radicand, other.pi):
        return None
    return _normal(one.fraction + other.fraction, one.radicand, one.pi)


def _times(one: Constant, other: Constant) -> Constant:
    common = math.gcd(one.radicand, other.radicand)
    radicand = (one.radicand // common) * (other.radicand // common)
    return _normal(one.fraction * other.fraction * common, radicand, one.pi + other.pi)


def _inverse(one: Constant) -> Constant:
    return Constant(1 / (one.fraction * one.radicand), one.radicand, -one.pi)


def _over(one: Constant, other: Constant) -> Constant:
    return _times(one, _inverse(other))


def _power(base: Constant, exponent: Constant) -> Constant | None:
    if exponent.radicand != 1 or exponent.pi:
        return None
    if exponent.fraction.denominator == 2 and base.radicand == 1 and not base.pi:
        root = _root(base)
        return None if root is None else _power(root, Constant(exponent.fraction * 2))
    if exponent.fraction.denominator != 1:
        return None
    times = exponent.fraction.numerator
    if not base.fraction:
        return ZERO if times > 0 else None
    if abs(times) * max(1, _bits(base) if abs(base.fraction) != 1 else 1, base.radicand.bit_length()) > _MOST_BITS:
        return None
    if times < 0:
        base, times = _inverse(base), -times
    return Constant(
        base.fraction**times * Fraction(base.radicand) ** (times // 2),
        base.radicand if times % 2 else 1,
        base.pi * times,
    )


def _root(inside: Constant, degree: Constant = _TWO) -> Constant | None:
    if inside.radicand != 1 or inside.pi or inside.fraction < 0:
        return _cube_root(inside) if degree.fraction == 3 else None
    if not inside.fraction:
        return ZERO
    if degree != _TWO:
        return _cube_root(inside) if degree.fraction == 3 else None
    above, below = inside.fraction.numerator, inside.fraction.denominator
    if _bits(inside) > _MOST_BITS_SPELLED:
        return None
    parts = _square_part(above * below)
    return None if parts is None else Constant(Fraction(parts[0], below), parts[1])


def _cube_root(inside: Constant) -> Constant | None:
    if inside.radicand != 1 or inside.pi or _bits(inside) > _MOST_BITS_SPELLED:
        return None
    roots = [_whole_root(abs(part), 3) for part in inside.fraction.as_integer_ratio()]
    if roots[0] is None or roots[1] is None:
        return None
    found = Fraction(roots[0], roots[1])
    return Constant(-found if inside.fraction < 0 else found)


def _whole_root(number: int, degree: int) -> int | None:
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < number:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == number else None


def _square_part(number: int) -> tuple[int, int] | None:
    """a and b with a²·b = `number` and b square-free; None if the factorization would take too long."""
    root = math.isqrt(number)
    if root * root == number:
        return root, 1
    if number > _LARGEST_RADICAND:
        return None
    outside, inside, factor = 1, number, 2
    while factor * factor * factor <= inside:
        while inside % (factor * factor) == 0:
            inside //= factor * factor
            outside *= factor
        factor += 1
    # The remainder has no squared factor below its cube root: it is a square, or square-free except small factors.
    left, free = inside, 1
    for small in range(2, factor):
        if left % small == 0:
            left //= small
            free *= small
    root = math.isqrt(left)
    return (outside * root, free) if root * root == left else (outside, free * left)


def _factorial(one: Constant) -> Constant | None:
    if one.radicand != 1 or one.pi or one.fraction.denominator != 1 or not 0 <= one.fraction <= 5000:
        return None
    return Constant(Fraction(math.factorial(int(one.fraction))))


def _binomial(above: Constant, below: Constant) -> Constant | None:
    n, k = above.fraction, below.fraction
    whole = above == Constant(n) and below == Constant(k) and n.denominator == k.denominator == 1
    return Constant(Fraction(math.comb(int(n), int(k)))) if whole and 0 <= n <= 5000 and k >= 0 else None


def _rounded(one: Constant, up: bool) -> Constant | None:
    if one.radicand != 1 or one.pi:
        return None
    return Constant(Fraction(math.ceil(one.fraction) if up else math.floor(one.fraction)))


_RULES: dict[str, Callable[..., Constant | None]] = {
    "add": _add,
    "mul": _times,
    "scientific": _times,
    "mixed": _add,
    "neg": lambda one: _normal(-one.fraction, one.radicand, one.pi),
    "frac": _over,
    "power": _power,
    "root": _root,
    "group": lambda one: one,
    "abs": lambda one: _normal(abs(one.fraction), one.radicand, one.pi),
    "factorial": _factorial,
    "binom": _binomial,
    "floor": lambda one: _rounded(one, up=False),
    "ceil": lambda one: _rounded(one, up=True),
}


def is_finished(term: Term) -> bool:
    r"""Whether a number is in finished form and not left to be computed.

    Finished forms are, with an optional sign: integers, decimals (also repeating ones), reduced fractions of
    integers, mixed numbers, roots that cannot be simplified, multiples of π or e, powers with an exponent other
    than 0 and 1, scientific notation, and such a root or constant multiplied with an integer or a reduced fraction:
    ``\frac{3\sqrt{2}}{4}``. Not finished are ``\frac{4}{2}``, ``6\sqrt{49}``, ``13^1``, ``5 \cdot 2`` and
    ``37\frac{45}{1}``.
    """
    if term.op == "neg":
        return is_finished(term.parts[0]) and term.parts[0].op not in ("neg", "group")
    if term.op == "group":
        return is_finished(term.parts[0])
    if term.op == "number":
        return True
    if term.op == "mixed":
        return _is_reduced(*term.parts[1].parts)
    if term.op == "scientific":
        return True
    if term.op == "power":
        return _is_finished_power(*term.parts)
    if term.op == "frac":
        above, below = term.parts
        if _is_plain(above) and _is_plain(below):
            return _is_reduced(above, below)
        if below.op == "number" and below.name == "integer" and below.value > 1:
            return _is_multiple(above, below)
        return _is_plain(above) and below.op == "power" and _is_lowest(term)
    return _is_irrational(term) or _is_multiple(term, None)


def _is_lowest(term: Term) -> bool:
    """Whether an integer over a power, ``\\frac{3}{2^{10}}``, cannot be reduced."""
    above, below = term.parts
    value = value_of(term)
    return (
        value is not None and _is_finished_power(*below.parts) and value.fraction.numerator == _signed_value(above)
    )


def _is_plain(term: Term) -> bool:
    return is_signed_integer(term)


def _is_reduced(above: Term, below: Term) -> bool:
    signed, whole = _signed_value(above), _signed_value(below)
    return abs(whole) > 1 and math.gcd(signed, whole) == 1 and (signed >= 0 or whole > 0)


def _signed_value(term: Term) -> int:
    return -int(term.parts[0].value) if term.op == "neg" else int(term.value)


def _is_finished_power(base: Term, exponent: Term) -> bool:
    if base.op == "group":
        base = base.parts[0]
    if not is_signed_integer(exponent) or _signed_value(exponent) in (0, 1):
        return False
    raised = _is_fractional(base) and _signed_value(exponent) > 0  # otherwise a reciprocal is left to compute
    return (_is_plain(base) and abs(_signed_value(base)) > 1) or base.op == "constant" or raised


def _is_fractional(base: Term) -> bool:
    return (base.op == "frac" and all(map(_is_plain, base.parts))) or (
        base.op == "number" and base.name != "integer"
    )


def _is_irrational(term: Term) -> bool:
    """Whether a term is a root that cannot be simplified, π, e, i, or a power of those constants."""
    if term.op == "constant":
        return True
    if term.op == "power":
        return term.parts[0].op == "constant" and _is_finished_power(*term.parts)
    if term.op != "root" or not _is_plain(term.parts[0]):
        return False
    inside = int(term.parts[0].value)
    degree = term.parts[1] if len(term.parts) == 2 else _SQUARE
    return inside > 1 and _is_plain(degree) and not _divided_by_power(inside, _signed_value(degree))


def _divided_by_power(number: int, degree: int) -> bool:
    """Whether the root of a number can be simplified. For large numbers only small factors are tried."""
    if degree < 2 or number.bit_length() > _MOST_BITS_SPELLED:
        return True
    if degree == 2 and number <= _LARGEST_RADICAND:
        parts = _square_part(number)
        return parts is not None and parts[0] > 1
    largest = min(_LARGEST_FACTOR_TRIED, 1 << (number.bit_length() // degree + 1))
    return _is_power(number, degree) or any(number % factor**degree == 0 for factor in range(2, largest))


def _is_power(number: int, degree: int) -> bool:
    return math.isqrt(number) ** 2 == number if degree == 2 else _whole_root(number, degree) is not None


def _is_multiple(term: Term, below: Term | None) -> bool:
    """Whether a term is a multiple of roots and constants: ``2\\sqrt{3}\\pi``, in lowest terms over `below`."""
    if term.op == "neg":
        term = term.parts[0]
    if _is_irrational(term):
        return True
    if term.op != "mul" or (term.name == "*" and len(term.parts) != 2):
        return False
    first, *others = (one for part in term.parts for one in (part.parts if part.op == "mul" else (part,)))
    if first.op == "frac" and below is None:
        plain = all(_is_plain(part) for part in first.parts) and _is_reduced(*first.parts)
    else:
        plain = first.op == "number" and first.value > 0 and (first.name != "integer" or first.value != 1)
    if plain and below is not None and first.name == "integer":
        plain = math.gcd(int(first.value), int(below.value)) == 1
    kinds = [other.name or other.op for other in others]
    if not plain:
        kinds, others, plain = [first.name or first.op, *kinds], [first, *others], True
    return plain and bool(others) and all(map(_is_irrational, others)) and len(set(kinds)) == len(kinds)
