"""Audits a problem set: its golds and their rewritings must be rewarded, mutants must not."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from reval_core.answers.extraction import Mode
from reval_core.auditing.gold_values import suspicions
from reval_core.auditing.mutants import mutants
from reval_core.auditing.rewritings import GOLD_ITSELF, rewritings
from reval_core.auditing.variant import Variant
from reval_core.config import ProblemSet
from reval_core.problems.order import shuffled
from reval_core.problems.problem import Problem
from reval_core.problems.problem_sets import read_set
from reval_core.rows import within
from reval_core.verification import Claim, Verdict, Verifier

What = Literal["gold", "rewriting", "mutant"]
"""The category of a response. A gold and its rewritings must be rewarded, a mutant must not."""

Placed = tuple[str, Problem]
"""A problem's line or row in its file, and the problem."""

_OTHERS = 2
"""Number of other problems' golds that are tried on each problem."""
_PROBLEMS_PER_CALL = 200
"""Problems judged together: enough to keep the workers busy, few enough to bound memory."""


@dataclass(frozen=True)
class JudgedResponse:
    """One judged response."""

    place: str
    """The line or row of its problem."""
    prompt_id: str
    gold: str
    what: What
    kind: str
    """How it was made from the gold."""
    response: str
    verdict: Verdict

    @property
    def as_it_should_be(self) -> bool:
        """Whether a right answer was rewarded, or a wrong one was not."""
        return (self.verdict == "correct") == (self.what != "mutant")


@dataclass(frozen=True)
class Suspicion:
    """A gold that may be unusable, or that the rules do not handle."""

    place: str
    prompt_id: str
    gold: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """The results of an audit."""

    origin: str
    problems: int
    """Number of audited problems."""
    usable: int
    """Number of usable problems in the set."""
    mode: Mode
    kinds: Mapping[tuple[What, str], tuple[int, int]]
    """Maps the kind of a variant to the number of responses, and of those judged as expected."""
    unjudged: int
    """Responses that timed out or killed a worker; they are not rewarded."""
    rest: Sequence[JudgedResponse]
    """All responses that were not judged as expected."""
    suspicious: Sequence[Suspicion]

    def counts(self, what: What) -> tuple[int, int]:
        """Return the number of responses of a category, and of those judged as expected."""
        found = [counts for (one, _), counts in self.kinds.items() if one == what]
        return sum(total for total, _ in found), sum(passed for _, passed in found)


def audit_set(
    source: ProblemSet,
    verifier: Verifier,
    mode: Mode,
    sample: int | None = None,
    seed: int = 0,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Audit:
    """Test a verifier on the usable problems of a set.

    The responses to a problem depend on `seed`, its id and the golds of the set, but not on the sample.

    Args:
        source: The problem set.
        verifier: The verifier to test.
        mode: Its verification mode.
        sample: Number of problems to audit; all if None.
        seed: Seed of the sample and of the mutants.
        tick: Called with the number of problems done, and their total.

    Raises:
        InputError: The set cannot be read.
    """
    origin, reads = read_set(source)
    usable = [(within(read.place, origin), read.problem) for read in reads if read.problem is not None]
    return audit_problems(origin, usable, _sample(usable, sample, seed), verifier, mode, seed, tick)


def audit_problems(
    origin: str,
    usable: Sequence[Placed],
    chosen: Sequence[Placed],
    verifier: Verifier,
    mode: Mode,
    seed: int = 0,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Audit:
    """Test a verifier on chosen problems of a set (see `audit_set`)."""
    variants_of = partial(variants, golds=[problem.answer for _, problem in usable], mode=mode, seed=seed)
    total: Counter[tuple[What, str]] = Counter()
    rest: list[JudgedResponse] = []
    unjudged = 0
    for one in _judged(chosen, variants_of, verifier, tick):
        total[one.what, one.kind] += 1
        unjudged += one.verdict in ("timeout", "error")
        if not one.as_it_should_be:
            rest.append(one)
    failed = Counter((one.what, one.kind) for one in rest)
    return Audit(
        origin=origin,
        problems=len(chosen),
        usable=len(usable),
        mode=mode,
        kinds={kind: (count, count - failed[kind]) for kind, count in total.items()},
        unjudged=unjudged,
        rest=rest,
        suspicious=_suspicious(chosen, rest),
    )


def variants(problem: Problem, golds: Sequence[str], mode: Mode, seed: int) -> list[tuple[What, Variant]]:
    """Return all responses to test on a problem; `golds` are those of its set."""
    rng = random.Random(f"{seed} {problem.prompt_id}")
    gold, gold_mode, text = problem.answer, problem.gold_mode, problem.problem
    right = rewritings(gold, gold_mode, text)
    wrong = mutants(gold, gold_mode, text, [rng.choice(golds) for _ in range(_OTHERS)], mode, rng)
    named: list[tuple[What, Variant]] = [("gold" if one.kind == GOLD_ITSELF else "rewriting", one) for one in right]
    return [*named, *(("mutant", one) for one in wrong)]


def _sample(usable: Sequence[Placed], sample: int | None, seed: int) -> Sequence[Placed]:
    if sample is None or sample >= len(usable):
        return usable
    kept = set(shuffled([problem.prompt_id for _, problem in usable], seed, "audit")[:sample])
    return [(place, problem) for place, problem in usable if problem.prompt_id in kept]


def _judged(
    chosen: Sequence[Placed],
    variants_of: Callable[[Problem], list[tuple[What, Variant]]],
    verifier: Verifier,
    tick: Callable[[int, int], None],
) -> Iterator[JudgedResponse]:
    for start in range(0, len(chosen), _PROBLEMS_PER_CALL):
        rows = [
            (number, place, problem, what, variant)
            for number, (place, problem) in enumerate(chosen[start : start + _PROBLEMS_PER_CALL], start + 1)
            for what, variant in variants_of(problem)
        ]
        claims = [
            Claim(problem.answer, variant.response, False, problem.gold_mode, problem.problem)
            for _, _, problem, _, variant in rows
        ]
        for row, judgement in zip(rows, verifier.judge_each(claims), strict=True):
            number, place, problem, what, variant = row
            tick(number, len(chosen))
            yield JudgedResponse(
                place, problem.prompt_id, problem.answer, what, variant.kind, variant.response, judgement.verdict
            )


def _suspicious(chosen: Sequence[Placed], rest: Sequence[JudgedResponse]) -> list[Suspicion]:
    """Return the golds that are suspicious by their text or by the judgements on them."""
    judged: dict[str, dict[str, None]] = defaultdict(dict)
    for one in rest:
        reason = {"gold": "not accepted by itself", "mutant": "accepts a mutant"}.get(one.what)
        if reason:
            judged[one.prompt_id][reason] = None
    found = [
        Suspicion(
            place,
            problem.prompt_id,
            problem.answer,
            (*suspicions(problem.answer, problem.gold_mode), *judged.get(problem.prompt_id, ())),
        )
        for place, problem in chosen
    ]
    return [one for one in found if one.reasons]
