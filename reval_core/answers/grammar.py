r"""A recursive-descent parser for formulas such as ``\frac{3\sqrt2}{4}``. Unknown notation is rejected.

There is no computer algebra: formulas are parsed as written, so that their form can be judged too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from reval_core.answers.tokens import Token, words_of

_LONGEST = 400
_DEEPEST = 60
_LONGEST_NUMBER = 2000

FUNCTIONS = words_of("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp gcd lcm min max")
GREEK = words_of(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho "
    "varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma "
    "Upsilon Phi Psi Omega ell hbar"
)
_APPLIED = frozenset("fgh")
_REPEATING = re.compile(
    r"([0-9]*)\.([0-9]*?)(?:\\(?:overline|bar|dot)\s?\{?\s?([0-9]+)\s?\}?([0-9]*)(?:\\dot\s?\{?([0-9])\}?)?|\(([0-9]+)\))"
)
_DOTTED = re.compile(r"([0-9]*)\.([0-9]+?)(?:\.\.\.|\s?\\l?dots)")
_PERIOD = re.compile(r"([0-9]*?)([0-9]{1,12}?)\2+")


class Unread(Exception):
    """The tokens are not a formula of this grammar."""


class Term(NamedTuple):
    """A node of a formula's syntax tree.

    Attributes:
        op: number, symbol, constant (pi, e, i, oo), add, neg, mul, frac, power, root, call, factorial, plusminus,
            mixed, scientific, abs, floor, ceil, binom, group or degrees.
        parts: The operands.
        name: The symbol, function or notation.
        value: The value of a number.
    """

    op: str
    parts: tuple[Term, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)


def read_formula(tokens: Sequence[Token]) -> Term:
    """Parse tokens as a formula.

    Raises:
        Unread: They are not a formula, or too many.
    """
    if not tokens or len(tokens) > _LONGEST:
        raise Unread
    reader = _Reader(tokens)
    found = reader.sum()
    if reader.place < len(tokens):
        raise Unread
    return found


class _Reader:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.place = 0
        self.depth = 0

    def peek(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place].text if place < len(self.tokens) else ""

    def take(self, *expected: str) -> str:
        text = self.peek()
        if not text or (expected and text not in expected):
            raise Unread
        self.place += 1
        return text

    def sum(self) -> Term:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unread
        parts = [self.signed()]
        while self.peek() in ("+", "-", r"\pm", r"\mp"):
            sign = self.take()
            part = self.signed() if self.peek() == "-" else self.product()
            if sign in (r"\pm", r"\mp"):
                parts.append(Term("plusminus", (part,), sign[1:]))
            else:
                parts.append(part if sign == "+" else Term("neg", (part,)))
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Term("add", tuple(parts))

    def signed(self) -> Term:
        sign = self.peek()
        if sign in ("+", "-", r"\pm", r"\mp"):
            self.take()
            part = self.product()
            if sign in (r"\pm", r"\mp"):
                return Term("plusminus", (part,), sign[1:])
            return part if sign == "+" else Term("neg", (part,))
        return self.product()

    def product(self) -> Term:
        found = self.side_by_side()
        while (sign := self.peek()) in ("*", "/", r"\times", r"\cdot"):
            self.take()
            negative = self.peek() == "-"
            if negative:
                self.take()
            other = self.side_by_side()
            other = Term("neg", (other,)) if negative else other
            if sign == "/":
                found = Term("frac", (found, other), "/")
            elif _is_power_of_ten(other) and found.op in ("number", "neg"):
                found = Term("scientific", (found, other))
            else:
                before = found.parts if found.op == "mul" and found.name == "*" else (found,)
                found = Term("mul", (*before, other), "*")
        return found

    def side_by_side(self) -> Term:
        factors = [self.postfix()]
        while self.starts_factor():
            if self.tokens[self.place].kind == "number" and self.tokens[self.place - 1].text != ")":
                raise Unread  # "5 6" is not a product
            factors.append(self.postfix())
        mixed = _mixed_number(factors[:2])
        if mixed is not None:
            factors[:2] = [mixed]
        return factors[0] if len(factors) == 1 else Term("mul", tuple(factors))

    def starts_factor(self) -> bool:
        if self.place >= len(self.tokens):
            return False
        token = self.tokens[self.place]
        if token.kind in ("number", "letters"):
            return True
        if token.kind == "word":
            return len(token.text) == 1 and token.text.isascii()
        if token.kind == "command":
            name = token.text[1:]
            return name in FUNCTIONS or name in GREEK or name in _OPENING_COMMANDS
        return token.text in ("(", "{", "[")

    def postfix(self) -> Term:
        found = self.atom()
        while self.place < len(self.tokens):
            text = self.peek()
            if text == "^":
                self.take()
                if self.raised_circle():
                    found = Term("degrees", (found,))
                else:
                    found = Term("power", (found, self.argument()))
            elif text == r"\circ":
                self.take()
                found = Term("degrees", (found,))
            elif text == "!":
                self.take()
                if self.peek() == "!":
                    raise Unread
                found = Term("factorial", (found,))
            else:
                break
        return found

    def raised_circle(self) -> bool:
        braced = self.peek() == "{"
        if self.peek(int(braced)) != r"\circ" or (braced and self.peek(2) != "}"):
            return False
        self.place += 3 if braced else 1
        return True

    def argument(self) -> Term:
        """The argument of a command or ^: a group or a single token."""
        if self.peek() == "{":
            return self.group("{", "}")
        if self.peek() == "-":
            self.take()
            return Term("neg", (self.atom(),))
        return self.atom()

    def digit_or_group(self) -> Term:
        """Like `argument`, but only the first of several digits: ``\\frac12``."""
        token = self.tokens[self.place] if self.place < len(self.tokens) else Token("sign", "")
        if token.kind == "number" and len(token.text) > 1:
            if not token.text.isdigit():
                raise Unread
            rest = Token("number", token.text[1:])
            self.tokens = [*self.tokens[: self.place], rest, *self.tokens[self.place + 1 :]]
            return _number(token.text[0])
        return self.argument()

    def group(self, opening: str, closing: str) -> Term:
        self.take(opening)
        inside = self.sum()
        self.take(closing)
        return inside if opening == "{" else Term("group", (inside,))

    def atom(self) -> Term:
        self.depth += 1
        if self.depth > _DEEPEST or self.place >= len(self.tokens):
            raise Unread
        found = self.plain_atom()
        self.depth -= 1
        return found

    def plain_atom(self) -> Term:
        token = self.tokens[self.place]
        if token.kind == "number":
            self.place += 1
            return _number(token.text)
        if token.kind == "letters":
            return self.letter()
        if token.kind == "word" and len(token.text) == 1 and token.text.isascii():
            self.place += 1
            return self.named(token.text)
        if token.kind == "command":
            return self.command(token.text[1:])
        closing = {"(": ")", "[": "]", "{": "}"}.get(token.text)
        if closing is not None:
            return self.group(token.text, closing)
        if token.text == "|":
            self.take()
            inside = self.sum()
            self.take("|")
            return Term("abs", (inside,))
        raise Unread

    def letter(self) -> Term:
        """The first of adjacent letters, which are a product of variables."""
        text, spaced = self.tokens[self.place].text, self.tokens[self.place].spaced
        if len(text) > 8:
            raise Unread
        if len(text) > 1:
            rest = Token("letters", text[1:], spaced)
            self.tokens = [*self.tokens[: self.place], rest, *self.tokens[self.place + 1 :]]
            return self.constant(text[0])
        self.place += 1
        return self.named(text)

    def named(self, name: str) -> Term:
        """A symbol with its subscript and primes, or a function that is applied."""
        if self.peek() == "_":
            self.take()
            name += "_" + self.subscript()
        while self.peek() == "'":
            name += self.take()
        at_zero = [self.peek(ahead) for ahead in range(3)] == ["(", "0", ")"]
        if (name in _APPLIED and self.peek() == "(") or at_zero:
            return Term("call", (self.group("(", ")"),), name)
        return self.constant(name)

    def constant(self, name: str) -> Term:
        return Term("constant", (), name) if name in ("e", "i", "pi") else Term("symbol", (), name)

    def subscript(self) -> str:
        if self.peek() != "{":
            token = self.tokens[self.place] if self.place < len(self.tokens) else Token("sign", "")
            if token.kind == "letters" and len(token.text) > 1:
                rest = Token("letters", token.text[1:])
                self.tokens = [*self.tokens[: self.place], rest, *self.tokens[self.place + 1 :]]
                return token.text[0]
            return self.take()
        self.take("{")
        found = ""
        while self.peek() != "}":
            found += self.take()
        self.take("}")
        return found

    def command(self, name: str) -> Term:
        self.place += 1
        if name == "frac":
            above = self.digit_or_group()
            return Term("frac", (above, self.digit_or_group()))
        if name == "binom":
            above = self.digit_or_group()
            return Term("binom", (above, self.digit_or_group()))
        if name == "sqrt":
            degree = self.group("[", "]") if self.peek() == "[" else None
            inside = self.group("(", ")") if self.peek() == "(" else self.digit_or_group()
            return Term("root", (inside,) if degree is None else (inside, degree.parts[0]))
        if name in ("lfloor", "lceil"):
            inside = self.sum()
            self.take(r"\rfloor" if name == "lfloor" else r"\rceil")
            return Term("floor" if name == "lfloor" else "ceil", (inside,))
        if name == "pi":
            return Term("constant", (), "pi")
        if name == "infty":
            return Term("constant", (), "oo")
        if name in GREEK:
            return self.named("\\" + name)
        if name in FUNCTIONS:
            return self.call(name)
        raise Unread

    def call(self, name: str) -> Term:
        base: tuple[Term, ...] = ()
        if name == "log" and self.peek() == "_":
            self.take()
            base = (self.argument() if self.peek() == "{" else self.digit_or_group(),)
        exponent = None
        if self.peek() == "^":
            self.take()
            exponent = self.argument()
            if exponent == Term("neg", (_number("1"),)):
                name, exponent = "arc" + name, None
        if name in ("gcd", "lcm", "min", "max"):
            found = Term("call", self.several(), name)
        else:
            found = Term("call", (self.function_argument(), *base), name)
        return found if exponent is None else Term("power", (found, exponent))

    def several(self) -> tuple[Term, ...]:
        self.take("(")
        parts = [self.sum()]
        while self.peek() == ",":
            self.take()
            parts.append(self.sum())
        self.take(")")
        return tuple(parts)

    def function_argument(self) -> Term:
        if self.peek() in ("(", "[", "{", "|"):
            return self.postfix()
        factors = []
        while self.starts_factor() and self.peek()[1:] not in FUNCTIONS and self.peek() not in ("(", "["):
            factors.append(self.postfix())
        if not factors:
            return self.postfix()
        return factors[0] if len(factors) == 1 else Term("mul", tuple(factors))


_OPENING_COMMANDS = words_of("frac binom sqrt lfloor lceil pi infty")


def _number(text: str) -> Term:
    """Parse a number. Raises Unread for too many digits, or for dots after digits without a visible period."""
    if len(text) > _LONGEST_NUMBER:
        raise Unread
    if text.isdigit():
        return Term("number", (), "integer", Fraction(int(text)))
    repeating = _REPEATING.fullmatch(text)
    if repeating is not None:
        whole, fixed, period, middle, last, bracketed = repeating.groups()
        return _periodic(whole, fixed, bracketed or period + (middle if last else "") + (last or ""))
    dotted = _DOTTED.fullmatch(text)
    if dotted is not None:
        found = _PERIOD.fullmatch(dotted[2])
        repeats = 0 if found is None else (len(dotted[2]) - len(found[1])) // len(found[2])
        if found is None or repeats < (3 if len(found[2]) == 1 else 2):
            raise Unread
        return _periodic(dotted[1], found[1], found[2])
    whole, point, decimals = text.partition(".")
    if not (whole + decimals).isdigit():
        raise Unread
    return Term("number", (), "decimal" if point and decimals else "integer", Fraction(text.rstrip(".")))


def _periodic(whole: str, fixed: str, period: str) -> Term:
    size = 10 ** len(fixed)
    value = Fraction(int((whole or "0") + fixed), size) + Fraction(int(period), size * (10 ** len(period) - 1))
    return Term("number", (), "repeating", value)


def _mixed_number(factors: Sequence[Term]) -> Term | None:
    """A mixed number ``2\\frac{1}{2}``: an integer followed by a proper fraction of integers."""
    if len(factors) < 2 or not _is_integer(factors[0]) or factors[1].op != "frac":
        return None
    above, below = factors[1].parts
    if _is_integer(above) and _is_integer(below) and 0 < above.value < below.value and factors[1].name != "/":
        return Term("mixed", tuple(factors))
    return None


def _is_integer(term: Term) -> bool:
    return term.op == "number" and term.name == "integer"


def _is_power_of_ten(term: Term) -> bool:
    return term.op == "power" and term.parts[0] == _number("10") and is_signed_integer(term.parts[1])


def is_signed_integer(term: Term) -> bool:
    """Whether a term is an integer literal, with or without a minus sign."""
    return _is_integer(term.parts[0] if term.op == "neg" else term)
