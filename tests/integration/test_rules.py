"""The rules of comparison, by cases of our own: half of each kind was written before a rule, half after."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.extraction import METHODS
from reval_core.verification import Claim
from reval_core.verification.claims import extracted_answer, verdict_at_sight
from reval_core.verification.comparison import is_correct

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "verifier_rules.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
KINDS = sorted({case["kind"] for case in CASES})


def paid(gold: str, response: str, lenient: bool) -> bool:
    """The verdict that a verifier comes to, without its processes."""
    claim = Claim(gold, response)
    answer = extracted_answer(claim, METHODS["lenient" if lenient else "strict"])
    found = verdict_at_sight(claim, answer, lenient)
    if isinstance(found, str):
        return found == "correct"
    return is_correct(list(found.golds), found.answer, lenient)


def boxed(answer: str) -> str:
    return rf"So the answer is $\boxed{{{answer}}}$."


def response_of(case: dict[str, Any]) -> str:
    return str(case.get("response") or boxed(case["answer"]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_cases(kind: str, mode: str) -> None:
    wrong = [
        (case["gold"], response_of(case))
        for case in CASES
        if case["kind"] == kind and paid(case["gold"], response_of(case), mode == "lenient") != case[mode]
    ]
    assert not wrong


def test_there_are_cases_of_both_halves_and_both_verdicts() -> None:
    assert len(CASES) >= 600
    for kind in KINDS:
        found = [case for case in CASES if case["kind"] == kind]
        assert {case["half"] for case in found} >= {"first", "second"}, "the third were found later"
        assert {case["strict"] for case in found} == {True, False}


def test_verdicts_depend_on_no_order() -> None:
    """Whatever was judged before, the verdict is the same."""
    cases = [case for case in CASES if case["kind"] in ("form", "equation", "region", "matrix", "size")]
    first = [paid(case["gold"], response_of(case), True) for case in cases]
    order = list(range(len(cases)))
    random.Random(1).shuffle(order)
    again = {place: paid(cases[place]["gold"], response_of(cases[place]), True) for place in order}
    assert [again[place] for place in range(len(cases))] == first


numbers = st.fractions(max_denominator=40, min_value=-50, max_value=50)


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=3), st.lists(numbers, min_size=1, max_size=3), st.booleans())
def test_numbers_sets_and_tuples_are_compared_alike_both_ways(
    one: list[Any], other: list[Any], lenient: bool
) -> None:
    for shape in ("{}", "({})", r"\{{{}\}}"):
        texts = [shape.format(", ".join(map(str, values))) for values in (one, other)]
        assert paid(texts[0], boxed(texts[1]), lenient) == paid(texts[1], boxed(texts[0]), lenient)
        assert paid(texts[0], boxed(texts[0]), lenient)


@settings(max_examples=40, deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9), st.integers(-9, 9))
def test_a_line_is_the_same_in_every_form(a: int, b: int, c: int, k: int) -> None:
    if not k or not a:
        return
    line = f"{a}x + {c}y = {b}"
    assert paid(line, boxed(f"{k * a}x + {k * c}y - {k * b} = 0"), False)
    assert paid(line, boxed(rf"y = \frac{{{b} - {a}x}}{{{c}}}"), False)
    assert not paid(line, boxed(f"{k * a}x + {k * c}y - {k * b} = 1"), False)
    assert not paid(line, boxed("1 = 1"), True)


@settings(max_examples=30, deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(2, 5))
def test_factored_and_expanded_forms_are_one(a: int, b: int, k: int) -> None:
    factored = f"{k}(x + {a})(x + {b})"
    expanded = f"{k}x^2 + {k * (a + b)}x + {k * a * b}"
    assert paid(factored, boxed(expanded), False)
    assert paid(expanded, boxed(factored), False)
    assert not paid(factored, boxed(f"{k}x^2 + {k * (a + b)}x + {k * a * b + 1}"), True)


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 400), st.integers(1, 9))
def test_tiny_and_huge_numbers_are_compared_exactly(exponent: int, digit: int) -> None:
    tiny = rf"\frac{{{digit}}}{{10^{{{exponent}}}}}"
    for other in (rf"-{tiny}", "0", rf"\frac{{{digit}}}{{10^{{{exponent + 1}}}}}"):
        assert not paid(tiny, boxed(other), True)
    assert paid(f"1 + {tiny}", boxed(f"{tiny} + 1"), True)
    assert not paid(f"1 + {tiny}", boxed("1"), True)
    assert not paid(rf"\pi + {tiny}", boxed(r"\pi"), True)
    assert not paid(f"2^{{{exponent}}} - {digit}", boxed(f"2^{{{exponent}}}"), True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=9))
def test_no_made_up_word_stands_beside_a_number_unnoticed(number: int, word: str) -> None:
    from reval_core.answers.units import FILLERS, JOINING, is_trailing_filler, unit_named

    if unit_named(word) or word in FILLERS | JOINING or is_trailing_filler(word) or word in ("and", "sqrt"):
        return
    for answer in (
        f"{number} {word}",
        rf"{number} \text{{ {word}}}",
        f"{word} {number}",
        rf"\text{{{word} }}{number}",
    ):
        assert not paid(str(number), boxed(answer), True)


PIECES = (
    r"( ) [ ] \{ \} { } , ; : = < > \le \in \cup \setminus | + - * / ^ _ ! . % \frac \sqrt \sin \pm \pi \infty 1 "
    r"2 0.5 x y f e i \text{cm} \text{or} \text{not} and or \begin{pmatrix} \end{pmatrix} & \\ $ \circ \approx "
    r"\ldots pm"
)
fragments = st.lists(st.sampled_from(PIECES.split()), max_size=14).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(fragments, fragments, st.booleans())
def test_no_texts_raise(gold: str, answer: str, lenient: bool) -> None:
    found = paid(gold, boxed(answer), lenient)
    assert found in (True, False)
