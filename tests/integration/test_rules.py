"""The rules of comparison on hand-written cases: half of each kind was written before the rule, half after."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.answers.extraction import METHODS
from reval_core.verification import Claim
from reval_core.verification.claims import extracted_answer, verdict_at_sight
from reval_core.verification.comparison import is_correct

DATA = Path(__file__).parents[1] / "data"


def read_cases(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


CASES = read_cases("verifier_rules.jsonl")
ATTACKS = read_cases("verifier_attacks.jsonl")
"""What a policy might exploit, and pairs of the kinds that honest responses contain."""
KINDS = sorted({case["kind"] for case in CASES})


def paid(gold: str, response: str, lenient: bool) -> bool:
    return claim_is_paid(Claim(gold, response), lenient)


def claim_is_paid(claim: Claim, lenient: bool) -> bool:
    """The verifier's verdict, without its processes."""
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


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in ATTACKS}))
@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_attacks(kind: str, mode: str) -> None:
    wrong = []
    for case in ATTACKS:
        if case["kind"] == kind:
            mode_of_gold = case.get("gold_mode", "all")
            claim = Claim(case["gold"], response_of(case), False, mode_of_gold, case.get("problem", ""))
            if claim_is_paid(claim, mode == "lenient") != case[mode]:
                wrong.append(case)
    assert not wrong


COMMANDS = "frac sqrt text boxed pm in cup begin end le approx overline circ times sum"
SIGNS = [
    *"0123456789xyzXeiB(){}[]|,;:.+-*/^_=<>!?%$&'\" \\",
    *(rf"\{name}" for name in COMMANDS.split()),
    *(
        " or",
        " not ",
        r"\left(",
        r"\right)",
        "{pmatrix}",
        r"\text{ cm}",
        "1,000",
        "4.5e33",
        "\u0305",
        "½",
        "²",
        "北",
    ),
]


def random_texts(seed: int, count: int) -> list[tuple[str, str]]:
    """Golds and answers: half of the answers are random characters, half a gold with some characters changed."""
    source = random.Random(seed)
    golds = [case["gold"] for case in CASES]
    found = []
    for place in range(count):
        gold = source.choice(golds)
        signs = list(gold) if place % 2 else source.choices(SIGNS, k=source.randrange(1, 16))
        for _ in range(1 + place % 3):
            signs[source.randrange(len(signs)) : source.randrange(len(signs) + 1)] = source.choices(SIGNS, k=2)
        found.append((gold, "".join(signs)))
    return found


def test_the_fast_path_raises_nothing() -> None:
    verdicts = set()
    for place, (gold, text) in enumerate(random_texts(5, 5_000)):
        known, stated = (text, gold) if place % 4 == 0 else (gold, text)
        found = verdict_at_sight(Claim(known, boxed(stated)), stated, lenient=place % 8 < 4)
        verdicts.add(found if isinstance(found, str) else "compared")
    assert {"correct", "wrong", "compared"} <= verdicts


def test_there_are_cases_of_both_halves_and_both_verdicts() -> None:
    assert len(CASES) >= 600
    assert sum(not case["strict"] for case in ATTACKS) >= 300
    for kind in KINDS:
        found = [case for case in CASES if case["kind"] == kind]
        assert {case["half"] for case in found} >= {"first", "second"}, "the third half was found later"
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
def test_numbers_sets_and_tuples_are_compared_symmetrically(
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
def test_factored_and_expanded_forms_are_equal(a: int, b: int, k: int) -> None:
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
def test_no_invented_word_next_to_a_number_is_ignored(number: int, word: str) -> None:
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
