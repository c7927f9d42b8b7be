"""Properties of the verifier over golds of every kind: hand-written ones and samples of the real sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reval_core.answers.extraction import Mode
from reval_core.auditing.audit import Audit, JudgedResponse, audit_problems, variants
from reval_core.auditing.gold_values import NUMBERS, read_gold
from reval_core.auditing.numerals import differ
from reval_core.auditing.rewritings import rewritings
from reval_core.problems import Problem
from reval_core.verification import Claim, Verifier
from tests.golds import DATA, SETS, drawn, written

PATIENCE = 20.0
"""Seconds per comparison: test machines are busy, and no property concerns time."""

NEEDED = 0.995
"""The share of golds and rewritings that must be accepted, and of mutants that must be rejected."""


@pytest.fixture(scope="module")
def verifiers() -> Iterator[dict[Mode, Verifier]]:
    modes: tuple[Mode, ...] = ("strict", "lenient")
    found = {mode: Verifier(workers=2, timeout_seconds=PATIENCE, mode=mode) for mode in modes}
    yield found
    for verifier in found.values():
        verifier.close()


def audited(problems: list[Problem], verifier: Verifier, mode: Mode = "strict") -> Audit:
    placed = [(one.prompt_id, one) for one in problems]
    return audit_problems("golds", placed, placed, verifier, mode)


def described(rest: list[JudgedResponse]) -> str:
    return "\n".join(f"{one.gold!r}: {one.what} {one.kind}: {one.response!r} is {one.verdict}" for one in rest)


def test_every_rendering_of_a_written_gold_is_accepted_and_no_mutant(verifiers: dict[Mode, Verifier]) -> None:
    found = audited(written(), verifiers["strict"])
    assert not found.rest, described(found.rest)
    assert found.counts("rewriting")[0] > 8 * len(written())
    assert found.counts("mutant")[0] > 15 * len(written())


def test_renderings_of_real_golds_are_accepted_and_mutants_are_not(verifiers: dict[Mode, Verifier]) -> None:
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    check_rates(audited(drawn(4), verifiers["strict"]))


@pytest.mark.full
@pytest.mark.parametrize("name", SETS)
def test_a_larger_sample_of_each_real_set(verifiers: dict[Mode, Verifier], name: str) -> None:
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    problems = [one for one in drawn(150, seed=1) if one.problem_set == name]
    for mode, verifier in verifiers.items():
        check_rates(audited(problems, verifier, mode))


def check_rates(found: Audit) -> None:
    for what in ("gold", "rewriting", "mutant"):
        asked, passed = found.counts(what)
        rest = [one for one in found.rest if one.what == what]
        assert passed >= NEEDED * asked, f"{what}: {passed} of {asked}\n{described(rest)}"


def test_no_answer_is_accepted_for_two_different_golds(verifiers: dict[Mode, Verifier]) -> None:
    """Each rendering of a number is judged against the golds nearest to it."""
    problems = [*written(), *drawn(6, seed=2)]
    golds = list(dict.fromkeys(one.answer for one in problems if read_gold(one.answer).kind in NUMBERS))
    claims = [
        Claim(other, one.response)
        for gold in golds
        for other in nearest(gold, golds)
        for one in rewritings(gold, "all", "")[::3]
    ]
    assert len(claims) > 100
    for verifier in verifiers.values():
        judgements = verifier.judge(claims)
        paid = [claim for claim, one in zip(claims, judgements, strict=True) if one.verdict == "correct"]
        assert not paid


def nearest(gold: str, golds: list[str]) -> list[str]:
    """Two golds that are other numbers and look most similar to this one."""
    others = [one for one in golds if differ(gold, one)]
    return sorted(others, key=lambda one: (abs(len(one) - len(gold)), -len(set(one) & set(gold)), one))[:2]


SYMMETRIC = (*NUMBERS, "tuple", "matrix", "list", "degrees")
"""Kinds with symmetric equality. An equation may be answered by its right side, and a unit may be omitted."""


def test_equality_is_symmetric(verifiers: dict[Mode, Verifier]) -> None:
    """Swapping gold and answer does not change the verdict, for rewritings and mutants in a box."""
    pairs = []
    for problem in written():
        if read_gold(problem.answer).kind in SYMMETRIC:
            for _, variant in variants(problem, ["17"], "lenient", seed=0)[::2]:
                answer = in_box(variant.response)
                if answer and read_gold(answer).kind in SYMMETRIC:
                    pairs.append((problem.answer, answer))
    assert len(pairs) > 100
    forth, back = (
        [one.verdict == "correct" for one in verifiers["lenient"].judge(claims)]
        for claims in (
            [Claim(gold, rf"\boxed{{{answer}}}") for gold, answer in pairs],
            [Claim(answer, rf"\boxed{{{gold}}}") for gold, answer in pairs],
        )
    )
    assert [pair for pair, one, other in zip(pairs, forth, back, strict=True) if one != other] == []
    assert any(forth)
    assert not all(forth)


def in_box(response: str) -> str | None:
    prefix, suffix = r"So the answer is $\boxed{", "}$."
    if not response.startswith(prefix) or r"\boxed" in response[len(prefix) :]:
        return None
    return response[len(prefix) : -len(suffix)]


def test_a_verdict_does_not_depend_on_the_load(verifiers: dict[Mode, Verifier]) -> None:
    """In order, in reverse, by one worker, and each alone."""
    problems = [one for one in written() if read_gold(one.answer).kind != "integer"][::3]
    claims = [
        Claim(problem.answer, variant.response, problem=problem.problem)
        for problem in problems
        for _, variant in variants(problem, ["17"], "strict", seed=0)[::4]
    ]
    together = [(one.verdict, one.extracted) for one in verifiers["strict"].judge(claims)]
    reverse = [(one.verdict, one.extracted) for one in verifiers["strict"].judge(claims[::-1])][::-1]
    assert reverse == together
    with Verifier(workers=1, timeout_seconds=PATIENCE) as single:
        assert [(one.verdict, one.extracted) for one in single.judge(claims)] == together
        alone = [single.judge([claim])[0] for claim in claims[::3]]
    assert [(one.verdict, one.extracted) for one in alone] == together[::3]
    assert {"correct", "wrong"} <= {verdict for verdict, _ in together}
