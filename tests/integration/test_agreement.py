"""What is accepted and what is not: attacks, the two modes, choices, and the public cases."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from reval_core.answers.extraction import Mode
from reval_core.verification import Claim, Verdict, Verifier

PUBLIC_CASES = Path(__file__).parents[3] / "shared" / "data" / "verifier_cases.jsonl"


def boxed(gold: str, answer: str) -> Claim:
    return Claim(gold, rf"So the answer is $\boxed{{{answer}}}$.")


@pytest.fixture(scope="module")
def verifiers() -> Iterator[dict[Mode, Verifier]]:
    """One per mode; with a long timeout, since test machines are busy."""
    modes: tuple[Mode, ...] = ("strict", "lenient")
    found = {mode: Verifier(timeout_seconds=20.0, mode=mode) for mode in modes}
    yield found
    for verifier in found.values():
        verifier.close()


ATTACKS = [
    ("5", r"\boxed{5} or \boxed{6}"),
    ("6", r"\boxed{5} or \boxed{6}"),
    ("6", r"\boxed{5}, \boxed{6}"),
    ("6", r"$\boxed{5}$ $\boxed{6}$"),
    ("6", r"$x = \boxed{5}$ or $x = \boxed{6}$"),
    ("6", "5 or 6"),
    ("6", "It is 5 or 6."),
    ("6", "It is either $5$ or $6$."),
    ("6", "It is **5** or **6**."),
    ("6", "It is [5] and [6]."),
    ("6", "It is 5 or maybe 6."),
    ("6", "It is 5/6/7 or so, 5 or 6"),
    ("7", "5, 6, 7"),
    ("7", "5 6 7"),
    ("7", "maybe 5, 6 and 7"),
    ("6", "The answer is 5 or 6."),
    ("6", "Final answer: 5, 6"),
    ("6", "#### 5, 6"),
    ("5", r"\boxed{x \in \{1,2,3,4,5,6,7,8,9\}}"),
    ("5", r"x \in \{1..9\}"),
    ("5", r"\boxed{x = 5, x = 6}"),
    ("5", r"\boxed{5 \pm 1}"),
    ("5", r"\boxed{[4,6]}"),
    ("5", r"\boxed{4 < x < 6}"),
    ("5", r"\boxed{5 | 6}"),
    ("5", r"\boxed{5 \text{ perhaps } 6}"),
    ("5", r"\boxed{5 not 6}"),
    ("5", r"\boxed{n}"),
    ("5", r"\boxed{?}"),
    ("5", r"\boxed{\text{answer}}"),
    ("5", r"\boxed{\ldots}"),
    ("x", r"\boxed{y}"),
    (r"\text{A}", r"\boxed{\text{B}}"),
    ("4210_5", r"\boxed{4210_6}"),
    (r"\{1,2\}", r"\boxed{1,2,3}"),
    (r"\{1,2\}", r"\boxed{1}, \boxed{2}, \boxed{3}"),
    ("1", r"\boxed{1 half}"),
    ("3", r"\boxed{3 quarters}"),
    ("2", r"\boxed{2 divided by three}"),
    ("2", r"\boxed{2 point five}"),
    ("5", r"\boxed{5 below zero}"),
    ("4", r"\boxed{4 maybe five}"),
    ("4", r"\boxed{4 versus five}"),
    ("tea", r"\boxed{eat}"),
    (r"\text{east}", r"\boxed{\text{seat}}"),
    ("BAC", r"\boxed{CAB}"),
    ("due east", r"\boxed{east due}"),
]


@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_listing_and_hedging_are_rejected(verifiers: dict[Mode, Verifier], mode: Mode) -> None:
    judgements = verifiers[mode].judge([Claim(gold, response) for gold, response in ATTACKS])
    paid = [attack for attack, found in zip(ATTACKS, judgements, strict=True) if found.verdict == "correct"]
    assert not paid


@pytest.mark.parametrize(
    ("gold", "answer", "strict", "lenient"),
    [
        ("1000.99", "1000,99", "wrong", "correct"),
        (r"x \in [-2,7]", r"-2 \le x \le 7", "wrong", "correct"),
        ("2x + 1", "2t + 1", "wrong", "correct"),
        ("x - y", "y - x", "wrong", "wrong"),
        ("x", "y", "wrong", "wrong"),
        ("2.5", "2 1/2", "correct", "correct"),
        ("1000", "1000 radians per second", "correct", "correct"),
        (r"\text{No solution}", "no solution", "correct", "correct"),
        ("BAC", r"\text{BAC}", "correct", "correct"),
        ("ab", "ba", "correct", "correct"),
        ("3abc", "3cab", "correct", "correct"),
        ("{1, 2}", r"\{2, 1\}", "correct", "correct"),
        (r"1 \pm \sqrt{2}", r"1 + \sqrt{2}, 1 - \sqrt{2}", "correct", "correct"),
        ("x_{1}=1,\\quadx_{2}=2", "2, 1", "correct", "correct"),
        (r"\boxed{1}\boxed{-2}", "-2, 1", "correct", "correct"),
    ],
)
def test_modes(verifiers: dict[Mode, Verifier], gold: str, answer: str, strict: Verdict, lenient: Verdict) -> None:
    found = {mode: verifier.judge([boxed(gold, answer)])[0].verdict for mode, verifier in verifiers.items()}
    assert found == {"strict": strict, "lenient": lenient}


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        ("B", r"\boxed{B}", "correct"),
        ("(B)", r"\boxed{\text{(B) 5 m/s}}", "correct"),
        ("B", "The answer is (B).", "correct"),
        ("B", "I choose **B**", "correct"),
        ("B", r"\boxed{C}", "wrong"),
        ("B", r"\boxed{B, C}", "wrong"),
        ("B", "(B) or (C)", "wrong"),
        ("B", r"\boxed{b}", "wrong"),
        ("B", "I do not know what it should be", "unparsed"),
        ("5", r"\boxed{B}", "error"),
    ],
)
def test_choices(verifiers: dict[Mode, Verifier], gold: str, response: str, verdict: Verdict) -> None:
    for verifier in verifiers.values():
        assert verifier.judge([Claim(gold, response, gold_mode="choice")])[0].verdict == verdict


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{\text{(B) 5 m/s}}", "B"),
        ("The answer is B. Since it is late.", "B"),
        (r"\boxed{B, C}", "B, C"),
        (r"\boxed{5}", "5"),
        ("I do not know what it should be", None),
    ],
)
def test_a_choice_is_recorded_by_its_letter(
    verifiers: dict[Mode, Verifier], response: str, extracted: str | None
) -> None:
    for verifier in verifiers.values():
        assert verifier.judge([Claim("B", response, gold_mode="choice")])[0].extracted == extracted


@pytest.mark.parametrize(
    ("mode", "stated", "agree", "overpaid"), [("strict", 128, 0.96, 1), ("lenient", 300, 0.95, 6)]
)
def test_agreement_on_the_public_cases(
    verifiers: dict[Mode, Verifier], mode: Mode, stated: int, agree: float, overpaid: int
) -> None:
    if not PUBLIC_CASES.exists():
        pytest.skip(f"{PUBLIC_CASES} is not here")
    cases = [json.loads(line) for line in PUBLIC_CASES.read_text(encoding="utf-8").split("\n") if line]
    judgements = verifiers[mode].judge([Claim(case["gold"], case["response"]) for case in cases])
    found = [
        (judgement.verdict == "correct", case["expected"])
        for judgement, case in zip(judgements, cases, strict=True)
        if judgement.extracted
    ]
    # Measured: see docs/verification.md for the cases behind the difference.
    assert len(found) >= stated
    assert sum(paid == expected for paid, expected in found) / len(found) >= agree
    assert sum(paid and not expected for paid, expected in found) <= overpaid
