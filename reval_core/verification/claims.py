"""What is judged, what is said of it, and what can be said without mathematics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from reval_core.answers import alternatives, as_choice
from reval_core.answers.extraction import Method, boxed_answers, extract, prepare_gold
from reval_core.verification.agreement import agree
from reval_core.verification.copied import is_copied, lacks_asked_form

_MOST_BOXES = 50

Verdict = Literal["correct", "wrong", "unparsed", "truncated", "timeout", "error", "given"]
"""What is known of a response. `given`: it was not judged, its reward came with it."""

GoldMode = Literal["all", "any", "choice"]
"""What a gold asks for: all of the answers that it lists, any one of them, or a letter."""


@dataclass(frozen=True)
class Claim:
    """A response and the gold answer that it claims to reach.

    `truncated` says that generation stopped at the length limit. `gold_mode` says what the gold asks for: ``all``
    answers that it lists, as a set; ``any`` one of them (all are accepted too); or the letter of a ``choice``.
    `problem` is for functions that judge (`Grading`), and so that its own formulas are not paid as answers.
    """

    gold: str
    response: str
    truncated: bool = False
    gold_mode: GoldMode = "all"
    problem: str = ""


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim, what was extracted from the response, and the wall time of the comparison.

    `milliseconds` is 0.0 where no worker was needed. Equal comparisons within one call are made once and share it.
    `outcome` is the number from 0 to 1 that a user's function has given, if one did.
    """

    verdict: Verdict
    extracted: str | None
    milliseconds: float
    outcome: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One piece of work for a worker: is the answer any of the golds?"""

    golds: tuple[str, ...]
    answer: str
    lenient: bool

    def message(self) -> dict[str, Any]:
        """What the worker is told."""
        return {"golds": self.golds, "answer": self.answer, "lenient": self.lenient}


@dataclass(frozen=True)
class Grading:
    """One piece of work for a worker that runs a user's function: what is this response worth?"""

    problem: str
    gold: str
    response: str

    def message(self) -> dict[str, Any]:
        """What the worker is told."""
        return {"values": [self.problem, self.gold, self.response]}


def extracted_answer(claim: Claim, methods: tuple[Method, ...]) -> str | None:
    """The answer that the response states; of a choice also where only a letter is named, and then that letter.

    Majority votes count answers by their text, so that `(B)` and ``\\text{B}`` must be one. Where no letter or
    several are named, the answer stays as it is.
    """
    if claim.gold_mode == "choice" and "choice" not in methods:
        last_resorts = [method for method in methods if method in ("tail", "whole")]
        methods = (*[method for method in methods if method not in last_resorts], "choice", *last_resorts)
    answer = extract(claim.response, methods)
    return as_choice(answer) or answer if claim.gold_mode == "choice" and answer else answer


def verdict_at_sight(claim: Claim, answer: str | None, lenient: bool) -> Verdict | Comparison:
    """The verdict where no mathematics is needed for it, else the comparison that a worker has to make.

    Texts that are equal and plain integers are decided here; a worker would decide them alike. Strictly, an answer
    that leaves the work undone is wrong, though a worker would find it equal.
    """
    if claim.truncated:
        return "truncated"
    if not answer:
        return "unparsed"
    golds = _accepted_golds(claim)
    if not golds[0]:
        return "error"  # without a gold nobody can be right, and that is not the response's fault
    if claim.gold_mode == "choice":
        return _choice_verdict(golds[0], answer)
    if not lenient and _is_one_of_several(claim, answer):
        return "wrong"
    if answer in golds:
        return "correct"
    if not lenient and (is_copied(answer, claim.problem, golds) or lacks_asked_form(answer, claim.problem, golds)):
        return "wrong"
    verdicts = {gold: agree(gold, answer, lenient) for gold in golds}
    if True in verdicts.values():
        return "correct"
    open_golds = tuple(gold for gold, verdict in verdicts.items() if verdict is None)
    return Comparison(open_golds, answer, lenient) if open_golds else "wrong"


def _accepted_golds(claim: Claim) -> tuple[str, ...]:
    """What a right answer may equal: the whole gold first."""
    gold = prepare_gold(claim.gold)
    members = alternatives(gold) if claim.gold_mode == "any" else []
    return tuple(dict.fromkeys([gold, *members]))


def _is_one_of_several(claim: Claim, answer: str) -> bool:
    """Whether a response boxes other answers too, apart from this one."""
    boxed = dict.fromkeys(boxed_answers(claim.response))
    if len(boxed) > _MOST_BOXES:
        return True
    parts = {answer, *alternatives(answer)}
    return any(one not in parts and not agree(answer, one, lenient=True) for one in boxed)


def _choice_verdict(gold: str, answer: str) -> Verdict:
    letter = as_choice(gold)
    if letter is None:
        return "error"
    return "correct" if as_choice(answer) == letter else "wrong"
