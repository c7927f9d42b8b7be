r"""Evaluates the number that a piece of LaTeX denotes, by plain arithmetic.

The audit uses this, independently of the audited rules, to check that a rewriting keeps the gold's value and that a
mutant changes it. It parses a small subset and rejects what is ambiguous (``1/2x``, ``x^10``): the value is then
unknown.
"""

from __future__ import annotations

import cmath
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

Number = Fraction | complex
"""Exact if rational."""

_SPACE = re.compile(r"(?:\s|\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\(?:left|right|displaystyle|limits)(?![A-Za-z]))+")
_GROUPED = re.compile(r"(?<=\d)(?:,\\!\s*|\\,)(?=\d{3}(?!\d))")
_NUMBER = re.compile(
    r"\d+(?:\.\d*)?[eE][+-]?\d{1,2}(?!\d)|\d{1,3}(?:\{?,\}?(?:\\!)?\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d+)?|\.\d+"
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_MIXED = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_SUBSCRIPT = re.compile(r"_(?:\{(?:[A-Za-z0-9]+)\}|[A-Za-z0-9])")
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "theta", "lambda", "mu", "nu", "rho", "sigma",
    "tau", "phi", "varphi", "psi", "omega", "Omega", "Delta", "Gamma", "Sigma", "Phi", "Psi", "Lambda", "eta", "xi",
}  # fmt: skip
_FUNCTIONS: Mapping[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "ln": cmath.log,
    "log": cmath.log,
    "exp": cmath.exp,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
}
_OPENING = {"(": ")", "[": "]", "{": "}"}
_LARGEST_FACTORIAL = 5000
_LARGEST_POWER = 5000


class _Unknown(Exception):
    """The value of this text is unknown."""


def value_of(text: str) -> Number | None:
    """Return the number that `text` denotes, or None if unknown. Each letter has a fixed arbitrary value."""
    reader = _Reader(_SPACE.sub(" ", _GROUPED.sub("", text.strip())))
    try:
        value = reader.sum()
        if reader.rest:
            return None
        return value if isinstance(value, Fraction) or cmath.isfinite(value) else None
    except (_Unknown, ArithmeticError, ValueError, RecursionError):
        return None


def differ(one: str, other: str) -> bool:
    """Return whether two texts certainly denote different numbers; non-integers must differ by 1 in 20,000."""
    first, second = value_of(one), value_of(other)
    if first is None or second is None:
        return False
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        integers = first.denominator == second.denominator == 1
        return first != second if integers else abs(first - second) * 20_000 > max(abs(first), abs(second))
    return not _close(first, second, 1 / 20_000, unknown=True)


def same(one: str, other: str) -> bool:
    """Return whether two texts certainly denote the same number."""
    first, second = value_of(one), value_of(other)
    if first is None or second is None:
        return False
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    return _close(first, second, 1e-9, unknown=False)


def _close(first: Number, second: Number, tolerance: float, unknown: bool) -> bool:
    """Return whether two numbers agree to a relative tolerance; `unknown` if they overflow floats."""
    try:
        one, other = complex(first), complex(second)
    except OverflowError:
        return unknown
    return abs(one - other) <= tolerance * max(abs(one), abs(other))


class _Reader:
    """A recursive-descent parser, with one method per precedence level."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._numeral_end = -1

    @property
    def rest(self) -> str:
        return self._text[self._place :].strip()

    def sum(self) -> Number:
        value = -self.product() if self._took("-") else self._after_plus()
        while True:
            if self._took("+"):
                value = value + self.product()
            elif self._took("-"):
                value = value - self.product()
            else:
                return value

    def _after_plus(self) -> Number:
        self._took("+")
        return self.product()

    def product(self) -> Number:
        value, slashed = self.power(), False
        while True:
            if self._took("*", r"\cdot", r"\times"):
                value, slashed = value * self._signed(), False
            elif self._took("/", r"\div"):
                if slashed:
                    raise _Unknown
                value, slashed = value / self._signed(), True
            elif self._begins_factor():
                numerals = self._peek().isdigit() and self._numeral_end == len(self._text[: self._place].rstrip())
                if slashed or numerals:  # 1/2x, 1 000
                    raise _Unknown
                value = value * self.power()
            else:
                return value

    def power(self) -> Number:
        value = self.base()
        while self._took("!"):
            value = _factorial(value)
        if self._took("^"):
            if self._peek() == r"\circ" or self._text.startswith(r"{\circ}", self._place):
                raise _Unknown
            value = _power(value, self.argument())
        return value

    def base(self) -> Number:
        self._skip()
        number = _NUMBER.match(self._text, self._place)
        if number:
            return self._number(number)
        sign = self._peek()
        if sign in _OPENING:
            self._took(sign)
            value = self.sum()
            if not self._took(_OPENING[sign]):
                raise _Unknown
            return value
        if self._took("|"):
            value = self.sum()
            if not self._took("|"):
                raise _Unknown
            return Fraction(abs(value)) if isinstance(value, Fraction) else complex(abs(value))
        if sign.startswith("\\"):
            self._place += len(sign)
            return self._command(sign[1:])
        if sign.isalpha() and sign.isascii():
            self._place += 1
            return self._symbol(sign)
        raise _Unknown

    def argument(self) -> Number:
        """Parse the argument of a command or an exponent: a group, one digit, one letter or one command."""
        self._skip()
        if self._peek() == "{":
            return self.base()
        digits = re.compile(r"\d+").match(self._text, self._place)
        if digits:
            # TeX takes one digit of x^10, most readers two.
            if len(digits[0]) > 2 or (len(digits[0]) == 2 and self._text[self._place - 1] == "^"):
                raise _Unknown
            self._place += 1
            return Fraction(digits[0][0])
        return self.base()

    def _number(self, number: re.Match[str]) -> Number:
        self._place = self._numeral_end = number.end()
        value = Fraction(re.sub(r"[^0-9.eE+-]", "", number[0]))
        mixed = _MIXED.match(self._text, self._place)
        if mixed and "." not in number[0]:
            self._place = mixed.end()
            return value + Fraction(int(mixed[1]), int(mixed[2]))
        return value

    def _command(self, name: str) -> Number:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            numerator = self.argument()
            return numerator / self.argument()
        if name == "sqrt":
            return self._root()
        if name in ("binom", "dbinom"):
            return _binomial(self.argument(), self.argument())
        if name == "pi":
            return complex(math.pi)
        if name in _GREEK:
            return self._symbol(name)
        if name in _FUNCTIONS:
            return self._function(name)
        raise _Unknown

    def _root(self) -> Number:
        degree: Number = Fraction(2)
        if self._took("["):
            degree = self.sum()
            if not self._took("]"):
                raise _Unknown
        under = self.argument()
        if isinstance(under, Fraction) and under >= 0 and degree == 2:
            exact = Fraction(math.isqrt(under.numerator), math.isqrt(under.denominator))
            if exact**2 == under:
                return exact
        return complex(complex(under) ** (1 / complex(degree)))

    def _function(self, name: str) -> Number:
        base = self.argument() if name == "log" and self._took("_") else None
        exponent = self.argument() if self._took("^") else Fraction(1)
        if exponent == -1:
            raise _Unknown  # the inverse function or the reciprocal
        value = _FUNCTIONS[name](complex(self.power()))
        if base is not None:
            value = value / cmath.log(complex(base))
        if self._begins_factor():  # \sin 2x
            raise _Unknown
        return _power(value, exponent)

    def _symbol(self, name: str) -> Number:
        subscript = _SUBSCRIPT.match(self._text, self._place)
        if subscript:
            self._place = subscript.end()
            name += subscript[0].replace("{", "").replace("}", "")
        digest = hashlib.sha256(name.encode()).digest()
        return Fraction(int.from_bytes(digest[:3], "big") + 2**22, 2**23)

    def _signed(self) -> Number:
        return -self.power() if self._took("-") else self.power()

    def _begins_factor(self) -> bool:
        sign = self._peek()
        if not sign or sign in ("|", r"\cdot", r"\times", r"\div"):
            return False
        return sign in _OPENING or sign[0].isalnum() or sign.startswith("\\")

    def _peek(self) -> str:
        """Return the next sign or command."""
        self._skip()
        command = _COMMAND.match(self._text, self._place)
        if command:
            return command[0]
        escaped = self._text.startswith("\\", self._place)
        return self._text[self._place : self._place + (2 if escaped else 1)]

    def _took(self, *signs: str) -> bool:
        if self._peek() not in signs:
            return False
        self._place += len(self._peek())
        return True

    def _skip(self) -> None:
        while self._text.startswith(" ", self._place):
            self._place += 1


def _power(value: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(value, Fraction):
        if abs(exponent) > _LARGEST_POWER:
            raise _Unknown
        return Fraction(value ** int(exponent))
    return complex(complex(value) ** complex(exponent))


def _factorial(value: Number) -> Number:
    return Fraction(math.factorial(_small(value)))


def _binomial(above: Number, below: Number) -> Number:
    return Fraction(math.comb(_small(above), _small(below)))


def _small(value: Number) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= _LARGEST_FACTORIAL:
        raise _Unknown
    return int(value)
