"""Claims, judgements and verdicts, and the decisions that need no worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from reval_core.answers import alternatives, as_choice
from reval_core.answers.extraction import Method, boxed_answers, extract, prepare_gold
from reval_core.verification.agreement import agree
from reval_core.verification.copied import is_copied, lacks_requested_form

_MOST_BOXES = 50

Verdict = Literal["correct", "wrong", "unparsed", "truncated", "timeout", "error", "given"]
"""The result of verification. `given`: not judged, because the response was imported with its reward."""

GoldMode = Literal["all", "any", "choice"]
"""What a gold requires: all of the answers that it lists, any one of them, or a letter."""


@dataclass(frozen=True)
class Claim:
    """A response and the gold answer to compare it with.

    Attributes:
        gold: The gold answer, as in the problem file.
        response: The text of the response.
        truncated: Whether generation stopped at the length limit.
        gold_mode: What the gold requires: ``all`` answers that it lists, as a set; ``any`` one of them (all are
            accepted too); or the letter of a ``choice``.
        problem: The text of the problem, for reward functions (`Grading`) and to reject copies of its own formulas.
    """

    gold: str
    response: str
    truncated: bool = False
    gold_mode: GoldMode = "all"
    problem: str = ""


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim.

    Attributes:
        verdict: The verdict.
        extracted: The answer that was extracted from the response, if any.
        milliseconds: Wall time of the comparison; 0.0 if no worker was needed. Equal comparisons within one call
            are made once and share it.
        outcome: The number from 0 to 1 that a user's function has returned, if there is one.
    """

    verdict: Verdict
    extracted: str | None
    milliseconds: float
    outcome: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A task for a worker: does the answer equal any of the golds?"""

    golds: tuple[str, ...]
    answer: str
    lenient: bool

    def message(self) -> dict[str, Any]:
        """The message to the worker."""
        return {"golds": self.golds, "answer": self.answer, "lenient": self.lenient}


@dataclass(frozen=True)
class Grading:
    """A task for a worker that runs a user's function: which outcome does the response have?"""

    problem: str
    gold: str
    response: str

    def message(self) -> dict[str, Any]:
        """The message to the worker."""
        return {"values": [self.problem, self.gold, self.response]}


def extracted_answer(claim: Claim, methods: tuple[Method, ...]) -> str | None:
    """The answer that the response states. For a multiple-choice problem it is reduced to the letter.

    Majority votes count answers by their text, so `(B)` and ``\\text{B}`` must be the same. If no letter or several
    are named, the answer is returned unchanged.
    """
    if claim.gold_mode == "choice" and "choice" not in methods:
        last_resorts = [method for method in methods if method in ("tail", "whole")]
        methods = (*[method for method in methods if method not in last_resorts], "choice", *last_resorts)
    answer = extract(claim.response, methods)
    return as_choice(answer) or answer if claim.gold_mode == "choice" and answer else answer


def verdict_at_sight(claim: Claim, answer: str | None, lenient: bool) -> Verdict | Comparison:
    """The verdict if it can be decided without algebra, otherwise the comparison for a worker.

    A worker would decide the same. The exception is strict mode, in which an unfinished answer (`is_copied`,
    `lacks_requested_form`) is wrong although a worker would find it equal.
    """
    if claim.truncated:
        return "truncated"
    if not answer:
        return "unparsed"
    golds = _accepted_golds(claim)
    if not golds[0]:
        return "error"  # without a gold no response can be correct
    if claim.gold_mode == "choice":
        return _choice_verdict(golds[0], answer)
    if not lenient and _is_one_of_several(claim, answer):
        return "wrong"
    if answer in golds:
        return "correct"
    if not lenient and (
        is_copied(answer, claim.problem, golds) or lacks_requested_form(answer, claim.problem, golds)
    ):
        return "wrong"
    verdicts = {gold: agree(gold, answer, lenient) for gold in golds}
    if True in verdicts.values():
        return "correct"
    open_golds = tuple(gold for gold, verdict in verdicts.items() if verdict is None)
    return Comparison(open_golds, answer, lenient) if open_golds else "wrong"


def _accepted_golds(claim: Claim) -> tuple[str, ...]:
    """The golds that a correct answer may equal, the whole gold first."""
    gold = prepare_gold(claim.gold)
    members = alternatives(gold) if claim.gold_mode == "any" else []
    return tuple(dict.fromkeys([gold, *members]))


def _is_one_of_several(claim: Claim, answer: str) -> bool:
    """Whether the response also boxes other, different answers."""
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
