"""Decides whether two formulas are the same function of their variables, by evaluation at fixed points.

Formulas are evaluated at a few fixed points with mpmath. They are equal if they agree there to forty digits, with
digits added for every large or small number within them. Results do not depend on caches, random numbers or the
hash seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import mpmath
from mpmath import mp

from reval_core.answers.grammar import Term

_DIGITS = 60
_CERTAIN = 40
_MOST_DIGITS = 6000
_MOST_VARIABLES = 20
_LARGEST_EXPONENT = 10_000_000
# Positive, negative and beyond 1, so that roots, absolute values and floors differ; none is a ratio of two others.
_POINTS = (
    ("0.7310585786", "1.3862943611", "2.2360679775", "0.5772156649", "3.1622776602", "1.2020569032"),
    ("-0.6180339887", "2.7182818285", "-1.7320508076", "3.3598856662", "-0.2614972128", "1.4513692349"),
    ("5.2915026221", "-3.6055512755", "0.1234567891", "-1.9021605831", "7.0710678119", "-0.6434105463"),
    ("-8.4261497732", "-0.3036630029", "-4.8104773810", "6.5808859911", "-2.3025850930", "9.2805227712"),
    ("13.0117", "17.0231", "11.0591", "19.0373", "23.0147", "29.0219"),
)
_MORE = ("0.9159655942", "-2.5849817596", "4.6692016091", "-1.0986122887", "31.0371")
"""Added repeatedly to a point's coordinates to generate more of them."""


class Undecided(Exception):
    """The formulas cannot be evaluated with enough digits."""


@lru_cache(maxsize=1024)
def symbols_of(term: Term) -> frozenset[str]:
    """The names of the variables in a formula."""
    own = {term.name} if term.op == "symbol" else set()
    return frozenset(own.union(*map(symbols_of, term.parts)))


def same_function(one: Term, other: Term, renamed: bool = False) -> bool:
    """Whether two formulas have equal values wherever both are defined.

    Args:
        one: A formula.
        other: A formula.
        renamed: Whether the only variable of one may have another name in the other.

    Raises:
        Undecided: At no point are both defined, or they need too many digits.
    """
    names, others = sorted(symbols_of(one)), sorted(symbols_of(other))
    rename = {others[0]: names[0]} if renamed and len(names) == len(others) == 1 else {}
    compared = 0
    for point in _points({*names, *(rename.get(name, name) for name in others)}):
        given = {name: point[rename.get(name, name)] for name in others}
        found = _pair(one, point, other, {**point, **given})
        if found is None:
            continue
        if not _close(*found):
            return False
        compared += 1
    if not compared:
        raise Undecided
    return True


def is_zero(term: Term) -> bool:
    """Whether a formula is 0 at every point."""
    return same_function(term, Term("number", (), "integer"))


def proportional(one: Term, other: Term) -> int:
    """The sign of the constant c in one = c · other, or 0 if there is none.

    Raises:
        Undecided: At no point are both defined, or they need too many digits.
    """
    ratios = []
    for point in _points(set(symbols_of(one) | symbols_of(other))):
        found = _pair(one, point, other, point)
        if found is None:
            continue
        above, below, digits, noise = found
        if abs(below) <= noise or abs(above) <= noise:
            return 0
        ratios.append(((above / below), digits))
    if not ratios:
        raise Undecided
    first = ratios[0][0]
    if mp.im(first) != 0 or any(abs(ratio - first) > abs(first) * mp.mpf(10) ** -_CERTAIN for ratio, _ in ratios):
        return 0
    return 1 if first > 0 else -1


def number(term: Term) -> Any:
    """The value of a formula without variables, to 30 digits.

    Raises:
        Undecided: It cannot be evaluated.
    """
    with mp.workdps(30):
        return _evaluate(term, {}, _Sizes())


def _points(names: set[str]) -> Sequence[Mapping[str, Any]]:
    if not names:
        return ({},)
    if len(names) > _MOST_VARIABLES:
        raise Undecided
    with mp.workdps(_DIGITS):
        return [dict(zip(sorted(names), _coordinates(place), strict=False)) for place in range(len(_POINTS))]


def _coordinates(place: int) -> list[Any]:
    found = [mp.mpf(value) for value in _POINTS[place]]
    while len(found) < _MOST_VARIABLES:
        found.append(found[-len(_POINTS[0])] + mp.mpf(_MORE[place]))
    return found


def _close(one: Any, other: Any, digits: int, noise: Any) -> bool:
    with mp.workdps(digits):
        size = max(abs(one), abs(other))
        # Up to half of the additional digits may be lost to cancellation.
        certain = _CERTAIN + (digits - _DIGITS) // 2
        return bool(size <= noise or abs(one - other) <= size * mp.mpf(10) ** -certain)


def _pair(
    one: Term, point: Mapping[str, Any], other: Term, other_point: Mapping[str, Any]
) -> tuple[Any, Any, int, Any] | None:
    """Both values, their number of digits, and the size below which values are noise; None if one is undefined."""
    sizes = _Sizes()
    try:
        with mp.workdps(30):
            _evaluate(one, point, sizes)
            _evaluate(other, other_point, sizes)
        digits = _DIGITS + 2 * sizes.largest
        if digits > _MOST_DIGITS:
            raise Undecided
        with mp.workdps(digits):
            noise = mp.mpf(10) ** (sizes.largest + 20 - digits)
            return _evaluate(one, point, sizes), _evaluate(other, other_point, sizes), digits, noise
    except (ZeroDivisionError, ValueError, OverflowError, mpmath.libmp.NoConvergence, TypeError):
        return None


class _Sizes:
    """The largest absolute decimal exponent among the numbers within a formula."""

    def __init__(self) -> None:
        self.largest = 0

    def note(self, value: Any) -> None:
        if mp.isnan(value) or mp.isinf(value):
            raise ValueError
        if value:
            # The position of the leading binary digit; cheaper than a logarithm.
            self.largest = max(self.largest, abs(int(mp.mag(value))) * 3 // 10)


def _evaluate(term: Term, point: Mapping[str, Any], sizes: _Sizes) -> Any:
    found = _value(term, point, sizes)
    sizes.note(found)
    return found


def _value(term: Term, point: Mapping[str, Any], sizes: _Sizes) -> Any:
    if term.op == "number":
        return mp.mpf(term.value.numerator) / term.value.denominator
    if term.op == "symbol":
        return point[term.name]
    if term.op == "constant":
        if term.name == "oo":
            raise ValueError
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[term.name]
    values = [_evaluate(part, point, sizes) for part in term.parts]
    if term.op == "call":
        return _call(term.name, values)
    if term.op == "power" and values[0] and mp.im(values[0]) == 0 and values[0] < 0:
        degree = _odd_degree(term.parts[1])
        if degree:
            # Consistent with roots: x^{2/3} is the square of the real cube root of x.
            return _root(values[0], degree) ** int(mp.nint(values[1] * degree))
    rule = _RULES.get(term.op)
    if rule is None:
        raise Undecided
    return rule(*values)


def _odd_degree(exponent: Term) -> int:
    """The denominator of an exponent such as 2/3 or -1/5 if it is odd, otherwise 0."""
    while exponent.op in ("neg", "group"):
        exponent = exponent.parts[0]
    if exponent.op != "frac" or any(part.op != "number" or part.name != "integer" for part in exponent.parts):
        return 0
    fraction = exponent.parts[0].value / exponent.parts[1].value if exponent.parts[1].value else 0
    degree = getattr(fraction, "denominator", 0)
    return degree if degree % 2 and 1 < degree < 1000 else 0


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > _LARGEST_EXPONENT:
        raise Undecided
    if not base and mp.re(exponent) <= 0:
        raise ZeroDivisionError
    if exponent == mp.nint(mp.re(exponent)):
        return base ** int(mp.nint(mp.re(exponent)))
    return mp.power(base, exponent)


def _root(inside: Any, degree: Any = 2) -> Any:
    if degree == 2:
        return mp.sqrt(inside)
    if degree == mp.nint(mp.re(degree)) and int(mp.re(degree)) % 2 and mp.im(inside) == 0 and inside < 0:
        return -mp.root(-inside, int(mp.re(degree)))
    return mp.power(inside, 1 / mp.mpmathify(degree))


def _product(*values: Any) -> Any:
    found = values[0]
    for value in values[1:]:
        found = found * value
    return found


def _call(name: str, values: Sequence[Any]) -> Any:
    if name in _CALLS:
        return _CALLS[name](*values)
    if name in ("gcd", "lcm"):
        whole = [int(value) for value in values if value == mp.nint(value)]
        if len(whole) != len(values):
            raise Undecided
        return mp.mpf(getattr(math, name)(*whole))
    if len(values) != 1:
        raise Undecided
    # An undefined function is replaced by a smooth function that depends on its name.
    return mp.sin(values[0] * (3 + sum(map(ord, name))) / 100) + mp.mpf(sum(map(ord, name))) / 7


def _logarithm(value: Any, base: Any = 10) -> Any:
    if not value:
        raise ZeroDivisionError
    return mp.log(value) / mp.log(base)


def _natural(value: Any) -> Any:
    if not value:
        raise ZeroDivisionError
    return mp.log(value)


def _whole(value: Any, rounding: Callable[[Any], Any]) -> Any:
    if mp.im(value):
        raise Undecided
    # A value that differs from an integer only in its last digits counts as that integer.
    nearest = mp.nint(mp.re(value))
    return nearest if abs(mp.re(value) - nearest) < mp.mpf(10) ** -25 else rounding(mp.re(value))


def _factorial(value: Any) -> Any:
    if abs(value) > _LARGEST_EXPONENT:
        raise Undecided
    return mp.factorial(value)


_RULES: dict[str, Callable[..., Any]] = {
    "add": lambda *values: mp.fsum(values),
    "neg": lambda value: -value,
    "mul": _product,
    "scientific": _product,
    "mixed": lambda whole, part: whole + part,
    "group": lambda value: value,
    "frac": lambda above, below: above / below,
    "power": _power,
    "root": _root,
    "abs": abs,
    "degrees": lambda value: value * mp.pi / 180,
    "factorial": _factorial,
    "binom": lambda above, below: mp.binomial(above, below),
    "floor": lambda value: _whole(value, mp.floor),
    "ceil": lambda value: _whole(value, mp.ceil),
}
_CALLS: dict[str, Callable[..., Any]] = {
    "log": _logarithm, "lg": _logarithm, "ln": _natural, "exp": lambda value: _power(mp.e, value),
    "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "min": min, "max": max,
    **{name: getattr(mp, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
}  # fmt: skip
