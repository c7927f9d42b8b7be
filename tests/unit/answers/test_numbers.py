"""Exact values of numbers in any notation."""

import contextlib
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reval_core.answers.grammar import Unread, read_formula
from reval_core.answers.numbers import Constant, value_of
from reval_core.answers.tokens import tokens


def value(text: str) -> Constant | None:
    return value_of(read_formula(tokens(text)))


@pytest.mark.parametrize(
    ("text", "fraction", "radicand", "pi"),
    [
        (r"0.\overline{3}", Fraction(1, 3), 1, 0),
        (r"0.1\overline{6}", Fraction(1, 6), 1, 0),
        (r"0.\dot{1}4285\dot{7}", Fraction(1, 7), 1, 0),
        ("0.(27)", Fraction(3, 11), 1, 0),
        ("0.333...", Fraction(1, 3), 1, 0),
        (r"0.1212\ldots", Fraction(4, 33), 1, 0),
        (r"2\frac{1}{2}", Fraction(5, 2), 1, 0),
        (r"37\frac{45}{1}", Fraction(37 * 45), 1, 0),
        (r"\frac12", Fraction(1, 2), 1, 0),
        (r"\sqrt{50}", Fraction(5), 2, 0),
        (r"\frac{1}{\sqrt{2}}", Fraction(1, 2), 2, 0),
        (r"\sqrt{\frac{3}{4}}", Fraction(1, 2), 3, 0),
        (r"\sqrt[3]{-27}", Fraction(-3), 1, 0),
        (r"4^{3/2}", Fraction(8), 1, 0),
        (r"\frac{2\pi}{6}", Fraction(1, 3), 1, 1),
        (r"(\sqrt{3})^3", Fraction(3), 3, 0),
        (r"\frac{100!}{98!}", Fraction(9900), 1, 0),
        (r"5.0 \times 10^{-320}", Fraction(5, 10**320), 1, 0),
        (r"\lfloor -\frac{7}{2} \rfloor", Fraction(-4), 1, 0),
        (r"|{-5}|", Fraction(5), 1, 0),
        (r"\sqrt{2}-\sqrt{2}", Fraction(0), 1, 0),
    ],
)
def test_values_are_exact(text: str, fraction: Fraction, radicand: int, pi: int) -> None:
    assert value(text) == Constant(fraction, radicand, pi)


@pytest.mark.parametrize("text", ["x", r"1+\pi", "1/0", "0^{-1}", r"\sqrt{-4}", "e", r"\infty", r"\sin 1"])
def test_others_have_no_value(text: str) -> None:
    assert value(text) is None


@pytest.mark.parametrize("text", ["5 6", "3.14159...", "", "1+", r"\int x", "(1", "a(b", r"\text{six}", "x!!"])
def test_texts_that_are_not_formulas_are_rejected(text: str) -> None:
    with pytest.raises(Unread):
        read_formula(tokens(text))


@pytest.mark.parametrize(
    "text",
    ["9^{9^{9^{9}}}", "((9!)!)!", "(10^{99999})!", r"\binom{10^{9}}{5}", "2^{10^{12}}", "9" * 1900 + "^9999"],
)
def test_sizes_are_checked_before_anything_is_computed(text: str) -> None:
    started = time.process_time()
    assert value(text) is None
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    "piece", ["(", "{", r"\sqrt", r"\sin ", r"\frac", "-", "x^", "^-", "|", "[", r"\left(", "1+", "x!", "a_", "9,"]
)
def test_hostile_formulas_are_rejected_quickly(piece: str) -> None:
    started = time.process_time()
    for count in (30, 300, 2000):
        with contextlib.suppress(Unread):
            value_of(read_formula(tokens(piece * count + "1")))
    assert time.process_time() - started < 2.0


fractions = st.fractions(max_denominator=10**6)


@given(fractions)
def test_all_notations_of_a_fraction_have_the_same_value(fraction: Fraction) -> None:
    above, below = fraction.as_integer_ratio()
    sign = "-" if above < 0 else ""
    assert value(rf"\frac{{{above}}}{{{below}}}") == Constant(fraction)
    assert value(rf"{sign}\dfrac{{{abs(above)}}}{{{below}}}") == Constant(fraction)
    assert value(f"{above}/{below}") == Constant(fraction)


@given(st.integers(1, 10**4), st.integers(1, 99), st.integers(1, 99))
def test_roots_have_a_canonical_form(inside: int, outside: int, below: int) -> None:
    one = value(rf"\frac{{{outside}\sqrt{{{inside}}}}}{{{below}}}")
    other = value(rf"\sqrt{{\frac{{{inside * outside**2}}}{{{below**2}}}}}")
    assert one == other
    assert one is not None
    assert one.fraction**2 * one.radicand == Fraction(inside * outside**2, below**2)


@given(st.integers(0, 9999), st.text("0123456789", max_size=6), st.text("0123456789", min_size=1, max_size=6))
def test_repeating_decimals(whole: int, fixed: str, period: str) -> None:
    found = value(rf"{whole}.{fixed}\overline{{{period}}}")
    assert found is not None
    shifted = found.fraction * 10 ** len(fixed)
    assert (shifted * 10 ** len(period) - shifted).denominator == 1
    assert abs(found.fraction - Fraction(f"{whole}.{fixed}{period * 3}")) <= Fraction(
        1, 10 ** (len(fixed) + 3 * len(period))
    )
