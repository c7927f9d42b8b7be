"""Unfinished answers: numbers that are still to be computed, and copied formulas."""

import time

import pytest

from reval_core.answers import tidy
from reval_core.answers.grammar import read_formula
from reval_core.answers.numbers import is_finished
from reval_core.answers.tokens import tokens
from reval_core.verification import Claim, Verdict
from reval_core.verification.claims import verdict_at_sight

# Each of them is algebraically 12, and no worker is needed.
COMPUTATIONS = [
    "5+7",
    "15 − 3",
    "(5+7)",
    r"\{5+7\}",
    "[5+7]",
    "x = 5 + 7",
    "12 = 5+7",
    r"5+7 \text{ cm}",
    r"x \approx 5+7",
    "3*4",
    r"3 \times 4",
    "3·4",
    "(3)(4)",
    r"3\left(4\right)",
    r"\sqrt{72}\sqrt{2}",
    r"\frac{1}{2}\frac{24}{1}",
    r"1.2 \times 10",
    r"24 \div 2",
    r"3^{1+1}+3",
    r"2^{2+1}+4",
    r"90^\circ - 78^\circ",
    r"\gcd(24,36)",
    "gcd(24, 36)",
    r"\operatorname{lcm}(3,4)",
    r"\max(12,3)",
    r"112 \mod 100",
    r"\lfloor 12.5 \rfloor",
    r"\left|-12\right|",
    r"\dbinom{12}{1}",
    r"{12 \choose 1}",
    r"\log_2 4096",
    r"e^{\ln 12}",
    r"\frac{12!}{11!}",
    r"\sum_{i=1}^{12} 1",
    r"\int_0^{12} 1 dx",
    r"\lim_{x\to12} x",
    r"\begin{vmatrix} 12 \end{vmatrix}",
    r"\frac{24}{2}",
    "24/2",
    r"\frac{12}{1}",
    r"\sqrt{144}",
    r"2\sqrt{36}",
    "12^{1}",
    "3^1 4^1",
    r"\frac{3}{1/4}",
    "--12",
]

FINISHED = [
    "12",
    "-12",
    "1,657",
    "0.5",
    r"0.\overline{3}",
    r"\frac{1}{2}",
    "-1/2",
    r"2\frac{1}{2}",
    r"\sqrt{2}",
    r"3\sqrt{5}",
    r"\frac{3\sqrt{2}}{4}",
    r"\frac{\sqrt{3}}{2}",
    r"\sqrt[3]{4}",
    r"4\pi",
    r"\frac{5\pi}{6}",
    r"\frac{2}{3}\pi",
    "2^{10}",
    "10^{-3}",
    r"\frac{1}{2^{500}}",
    r"1.2 \times 10^{5}",
    "e^2",
]

UNFINISHED = [
    r"\frac{2}{4}",
    r"\frac{4}{2}",
    r"\frac{0}{5}",
    r"37\frac{45}{1}",
    r"\frac{13}{1/17}",
    r"6\sqrt{49}",
    r"\sqrt{8}",
    r"\sqrt{0}",
    r"\frac{2\sqrt{3}}{4}",
    r"\frac{2\pi}{6}",
    r"2\pi\pi",
    r"\sqrt{2}\sqrt{2}",
    "5^1",
    "5^0",
    "1^7",
    r"5 \cdot 2",
    "5+2",
    "5!",
    r"\binom{4}{2}",
    "|5|",
    r"\sin 1",
    "2x",
]


def at_sight(gold: str, answer: str, problem: str = "", lenient: bool = False) -> Verdict | None:
    """The verdict, or None if a worker is needed."""
    found = verdict_at_sight(Claim(gold, "", problem=problem), tidy(answer), lenient)
    return found if isinstance(found, str) else None


@pytest.mark.parametrize("formula", FINISHED)
def test_finished_numbers(formula: str) -> None:
    assert is_finished(read_formula(tokens(formula.replace("1,657", "1657"))))


@pytest.mark.parametrize("formula", UNFINISHED)
def test_unfinished_computations(formula: str) -> None:
    assert not is_finished(read_formula(tokens(formula)))


@pytest.mark.parametrize("gold", ["12", "x = 12", r"12 \text{ apples}", r"12 \text{ cm}"])
def test_a_computation_is_not_a_number(gold: str) -> None:
    assert [one for one in COMPUTATIONS if at_sight(gold, one) != "wrong"] == []
    # A set is never a number; a worker is needed for what the grammar cannot evaluate.
    other_unit = [one for one in COMPUTATIONS if "apples" in gold and r"\text{ cm}" in one]
    assert [one for one in COMPUTATIONS if at_sight(gold, one, lenient=True) == "wrong"] == other_unit


@pytest.mark.parametrize("gold", ["x+1", r"2+\sqrt{3}", r"\frac{4}{8}", r"\sin 1"])
def test_golds_that_are_not_finished_may_need_an_operation(gold: str) -> None:
    assert (
        at_sight(gold, "x + 7") is None
        or at_sight(gold, r"1+\sqrt{3} + 1") is None
        or at_sight(gold, "1/2") == "correct"
    )


@pytest.mark.parametrize(
    ("problem", "gold", "answer"),
    [
        ("Factor $ab+5b+2a+10$.", "(a+5)(b+2)", "ab + 5b + 2a + 10"),
        (r"Simplify $\sqrt{242}$.", r"11\sqrt2", r"\sqrt{ 242 }"),
        (r"Compute \[\frac{10}{4}.\]", r"\frac{5}{2}", r"\dfrac{10}{4}"),
        (r"Write $\frac{9}{2}$ as a decimal.", "4.5", "9/2"),
        (r"Find $2^{10}$.", "1024", "2^{10}"),
        (r"If $f(x) = 2\sin x \cos x$, simplify $f$.", r"\sin 2x", r"2 \sin x \cos x"),
        (r"Write \(y - 3 = 2x\) in slope-intercept form.", "y = 2x + 3", "y-3=2x"),
        ("Expand (x+1)^2.", "x^2+2x+1", "(x+1)^2"),
        (r"Evaluate $\left(\frac{1}{3}\right)^2$", r"\frac{1}{9}", r"(\frac13)^2"),
    ],
)
def test_the_formula_of_the_problem_is_not_an_answer(problem: str, gold: str, answer: str) -> None:
    assert at_sight(gold, answer, problem) == "wrong"
    assert at_sight(gold, answer, problem, lenient=True) != "wrong"


@pytest.mark.parametrize(
    ("problem", "gold", "answer", "right"),
    [
        ("Factor $ab+5b+2a+10$.", "(a+5)(b+2)", "2a + 10 + ab + 5b", "(b+2)(a+5)"),
        ("Factor $4x^2-8x+4$.", "4(x-1)^2", "4x^2 + 4 - 8x", "(2x-2)^2"),
        ("Factor $2x^2+2x$.", "2x(x+1)", "2x + 2x^2", "(x+1)(2x)"),
        ("Expand $(x+1)^2$.", "x^2+2x+1", "(1+x)^2", "2x+x^2+1"),
        ("Expand $2(x+1)(x+2)$.", "2x^2+6x+4", "(x+1)(2x+4)", "4+6x+2x^2"),
    ],
)
def test_the_requested_form(problem: str, gold: str, answer: str, right: str) -> None:
    assert at_sight(gold, answer, problem) == "wrong"
    assert at_sight(gold, right, problem) is None, "a worker is asked"
    assert at_sight(gold, answer, problem, lenient=True) is None
    assert at_sight(gold, answer, "What is it?") is None


def test_the_formula_of_another_problem_is_compared() -> None:
    assert at_sight("1024", "2^{10}", "Find $2^{10}$.") == "wrong"
    assert at_sight("1024", "2^{10}", "Find $4^{5}$.") == "correct"


@pytest.mark.parametrize(
    ("problem", "gold", "answer"),
    [
        (r"Is it $\frac12$ or $1$?", r"\frac{1}{2}", "1/2"),
        (r"Is it $\frac12$ m or $1$ m?", r"\frac{1}{2}", r"\frac12 \text{ m}"),
        (r"Is $x = \frac12$?", r"\frac{1}{2}", r"x = \frac{1}{2}"),
        ("Factor $x^2+x+1+y$", "1+x", "x+1"),
        ("Factor $2x+1+y$", "1+x", "x+1"),
        ("Factor $x+1+y$", "1+x", "x+1"),
        ("Take x = 5 for granted.", "5.0", "x = 5"),
        (r"An angle of $45^\circ$ is given.", "45.0", r"45^\circ"),
        ("It holds $12 m^2$.", "12.0", r"12 \text{ m}^2"),
        (r"Is $-3$ in $[-5, 2]$?", r"[-5.0, 2]", "[-5, 2]"),
    ],
)
def test_values_may_occur_in_the_problem(problem: str, gold: str, answer: str) -> None:
    assert at_sight(gold, answer, problem) in (None, "correct")


def test_golds_that_are_not_numbers_still_count() -> None:
    claim = Claim("3, 1+x", "", gold_mode="any")
    found = verdict_at_sight(claim, "x+1", lenient=False)
    assert not isinstance(found, str)
    assert found.golds == ("1+x",)
    assert verdict_at_sight(Claim("3, 4", "", gold_mode="any"), "2+1", lenient=False) != "correct"


def test_hostile_answers_take_no_time() -> None:
    started = time.process_time()
    for piece in ("1+", "{", "(", " ", r"\left", r"\text{", r"\sqrt{", "9", "9,", r"\frac", "$", "^", ")", "!"):
        at_sight("12", piece * 600, piece * 5000)
        at_sight("x", piece * 600, piece * 5000)
        at_sight(piece * 600, "x+1", "x+1")
    assert time.process_time() - started < 2.0
