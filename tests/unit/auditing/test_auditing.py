"""The audit: values by plain arithmetic, kinds of golds, equal rewritings, different mutants."""

from __future__ import annotations

import math
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reval_core.auditing.audit import variants
from reval_core.auditing.gold_values import read_gold, suspicions
from reval_core.auditing.mutants import mutants
from reval_core.auditing.numerals import differ, same, value_of
from reval_core.auditing.rewritings import rewritings
from reval_core.config import GoldMode
from reval_core.problems import Problem
from tests.golds import WRITTEN

WHOLE = re.compile(r"So the answer is \$\\boxed\{(.*)\}\$\.", re.DOTALL)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-1{,}657", -1657),
        (r"11,\!090", 11090),
        (r"\frac12", Fraction(1, 2)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"3\frac{1}{2}", Fraction(7, 2)),
        (r"\frac{1}{2004!} \cdot 2003!", Fraction(1, 2004)),
        ("8.7e8", 870_000_000),
        (r"2^{10}", 1024),
        (r"\sqrt{49}", 7),
        (r"6\sqrt{5}", 6 * math.sqrt(5)),
        (r"\sqrt[3]{27}", 3),
        (r"\left(2+3\right) \cdot 4", 20),
        (r"|3 - 5|", 2),
        (r"\log_2 8", 3),
        (r"\sin^2 \frac{\pi}{6}", 0.25),
        (r"\binom{5}{2}", 10),
    ],
)
def test_a_value_is_that_of_the_text(text: str, value: Fraction | float) -> None:
    found = value_of(text)
    assert found is not None
    assert found == pytest.approx(value) if isinstance(value, float) else abs(found - value) < 1e-9


@pytest.mark.parametrize(
    "text", ["", "x^10", "1/2x", r"\sin 2x", r"\text{even}", "3 = 3", "(1, 2)", "1/0", "((2)", "1 000"]
)
def test_ambiguous_or_non_numeric_text_has_no_value(text: str) -> None:
    assert value_of(text) is None
    assert not differ(text, "7")
    assert not same(text, text)


def test_letters_denote_different_numbers_and_case_matters() -> None:
    assert differ("x", "X")
    assert differ("R-r", "0")
    assert differ("x_1", "x_2")
    assert same("2x + y", "y+2x")
    assert same("(x+1)^2", "x^2+2x+1")


def test_tiny_numbers_do_not_underflow() -> None:
    assert differ(r"\frac{1}{2004!}", r"\frac{1}{2003!}")
    assert differ(r"\frac{1}{2004!}", r"-\frac{1}{2004!}")
    assert differ("10^{-400}", "10^{-401}")


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6), st.integers(-50, 50))
def test_arithmetic_on_fractions_is_exact(top: int, bottom: int, other: int) -> None:
    assert value_of(rf"\frac{{{top}}}{{{bottom}}} - ({other})^{{2}}") == Fraction(top, bottom) - other**2


@pytest.mark.parametrize(("kind", "gold"), [(kind, gold) for kind, golds in WRITTEN.items() for gold in golds])
def test_golds_are_parsed_by_their_kind(kind: str, gold: str) -> None:
    assert read_gold(gold).kind == kind


@pytest.mark.parametrize(
    ("gold", "gold_mode", "reasons"),
    [
        ("1=1", "all", ["identity"]),
        ("x + y = y + x", "all", ["identity"]),
        ("N/A", "all", ["missing-value word"]),
        (r"\text{None}", "all", ["missing-value word"]),
        ("?", "all", ["missing-value word"]),
        (r"\text{cm}", "all", ["only a unit"]),
        (r"\frac{1}{2", "all", ["brackets do not match"]),
        ("$1$, $2$", "all", ["several answers"]),
        ("1, 2", "any", []),
        (r"\text{B}", "all", ["letter without a choice"]),
        ("(B)", "choice", []),
        ("12", "choice", ["no letter"]),
        ("all integers that are not the square of some other integer", "all", ["prose"]),
        ("42", "all", []),
        (r"y = 2x + 3", "all", []),
        (r"(2, 9]", "all", []),
        ("-3", "all", []),
    ],
)
def test_suspicious_golds_are_reported_with_the_reason(gold: str, gold_mode: str, reasons: list[str]) -> None:
    assert suspicions(gold, gold_mode) == reasons


INTEGERS = st.integers(-(10**7), 10**7).map(str)
FRACTIONS = st.tuples(st.integers(-999, 999).filter(bool), st.integers(2, 999)).map(
    lambda parts: rf"{'-' * (parts[0] < 0)}\frac{{{abs(parts[0])}}}{{{parts[1]}}}"
)
DECIMALS = st.tuples(st.integers(-999, 999), st.integers(0, 9999)).map(lambda parts: f"{parts[0]}.{parts[1]}")
SURDS = st.tuples(st.integers(2, 99), st.integers(2, 99)).map(lambda parts: rf"{parts[0]}\sqrt{{{parts[1]}}}")
GOLDS = st.one_of(INTEGERS, FRACTIONS, DECIMALS, SURDS)


@given(GOLDS)
def test_every_rewriting_of_a_number_has_its_value(gold: str) -> None:
    """Checked by plain arithmetic wherever it can parse the text."""
    answers = [answer(one.response) for one in rewritings(gold, "all", "")]
    read = [text for text in answers if text is not None and value_of(text) is not None]
    assert all(same(gold, text) for text in read)
    assert len(read) >= 2


@given(GOLDS, st.integers(0, 99))
def test_no_mutant_of_a_number_has_its_value(gold: str, seed: int) -> None:
    made = mutants(gold, "all", "", ["17", r"\frac{1}{3}", "x"], "strict", random.Random(seed))
    answers = [answer(one.response) for one in made]
    read = [text for text in answers if text is not None and value_of(text) is not None]
    unfinished = [answer(one.response) for one in made if one.kind == "unfinished"]
    assert {text for text in read if same(gold, text)} <= set(unfinished)
    assert len(read) >= 3


@pytest.mark.parametrize("gold", [gold for golds in WRITTEN.values() for gold in golds])
def test_every_gold_has_variants_of_its_kind(gold: str) -> None:
    right = rewritings(gold, "all", "")
    wrong = mutants(gold, "all", "", ["17"], "strict", random.Random(0))
    assert {one.response for one in right} & {one.response for one in wrong} == set()
    assert len({one.kind for one in right}) >= 8
    assert len({one.kind for one in wrong}) >= 4


def test_text_of_the_problem_is_not_a_rewriting() -> None:
    responses = [one.response for one in rewritings("4.5", "all", r"What is $\frac{9}{2}$ as a decimal?")]
    assert not any(r"\frac" in response for response in responses if "First" not in response)
    assert any(r"\frac{9}{2}" in one.response for one in rewritings("4.5", "all", "What is it?"))


def test_a_formula_of_the_problem_is_a_mutant_if_it_differs_or_is_unfinished_in_strict_mode() -> None:
    def formulas(problem: str, mode: str) -> list[str]:
        made = mutants("82", "all", problem, [], mode, random.Random(0))
        return [one.response for one in made if one.kind == "the problem's formula"]

    assert formulas("Find $37+46$.", "lenient") == [r"So the answer is $\boxed{37+46}$."]
    assert formulas("Find $37+45$.", "lenient") == []
    assert formulas("Find $37+45$.", "strict") == [r"So the answer is $\boxed{37+45}$."]
    assert formulas("Is it $82$ or $x$?", "strict") == []


@given(st.integers(-(10**6), 10**6), st.integers(0, 99))
def test_unfinished_answers_equal_the_gold_and_are_tested_in_strict_mode_only(gold: int, seed: int) -> None:
    strict, lenient = (
        [answer(one.response) for one in made if one.kind == "unfinished"]
        for made in (mutants(str(gold), "all", "", [], mode, random.Random(seed)) for mode in ("strict", "lenient"))
    )
    assert len(strict) == 3
    assert all(text is not None and same(str(gold), text.replace("⋅", r"\cdot ")) for text in strict)
    assert lenient == []


def test_with_any_of_several_answers_no_member_is_a_mutant() -> None:
    for seed in range(50):
        made = mutants("3, 4, 5, 6", "any", "", [], "strict", random.Random(seed))
        plain = [
            answer(one.response) for one in made if one.kind in ("neighbour", "one digit", "sign", "times ten")
        ]
        assert plain
        assert not {"3", "4", "5", "6"} & set(plain)


PIECES = st.one_of(
    st.sampled_from(
        [r"\frac", r"\sqrt", r"\text", r"\cup", r"\infty", r"\le", r"\begin{pmatrix}", r"\end{pmatrix}"]
    ),
    st.sampled_from([r"\{", r"\}", r"\\", r"\$", "20", "1", "x", "B", "e", "pm", " ", "\n", "−", "²"]),
    st.sampled_from("{}()[]_^,=:/-+.%&$"),
)


@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=12)), st.sampled_from(["all", "any"]))
def test_every_gold_can_be_audited(gold: str, gold_mode: GoldMode) -> None:
    problem = Problem("7", rf"Is it ${gold}$ or $1+2$?", gold or "0", gold_mode)
    found = variants(problem, ["17", gold], "strict", seed=0)
    assert found[0][0] == "gold"
    assert isinstance(suspicions(gold, gold_mode), list)


def test_variants_depend_on_the_seed_and_the_problem_only() -> None:
    problem = Problem("7", "What is it?", "42")
    found, again, other = (variants(problem, ["17", "3"], "strict", seed) for seed in (1, 1, 2))
    assert found == again
    assert [one for one in found if one[0] != "mutant"] == [one for one in other if one[0] != "mutant"]
    assert found != other


def answer(response: str) -> str | None:
    """Return the boxed answer of a plain response; None for others."""
    found = WHOLE.fullmatch(response)
    return None if found is None else found[1]
