r"""Judge responses: find the answer, then compare it with the gold in processes that can be killed.

Answers come from a policy in training, and comparing them is computer algebra: ``\binom{10000000}{5000000}``
runs for minutes and holds the interpreter lock, so that no thread or signal handler can stop it. Every comparison
therefore happens in a worker process with an address-space limit and a deadline that this process keeps. A worker
that is late is killed and replaced, and costs one verdict.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Self

from reval_core.answers.extraction import METHODS, Method, Mode
from reval_core.verification.claims import (
    Claim,
    Comparison,
    Grading,
    Judgement,
    Verdict,
    extracted_answer,
    verdict_at_sight,
)
from reval_core.verification.pool import Pool

# For cache keys: the rules here and in `extraction` and `answers` (raise the number with them), and what decides
# equality.
VERIFIER_VERSION = " ".join(
    ["4", *(f"{name}-{version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy"))]
)


class Verifier:
    """Judges claims with a pool of worker processes, started at the first claim that needs one and kept warm.

    Safe to use from any thread or process; calls from several threads share the workers. Close it, or use it
    as a context manager, to end the workers; they end by themselves when this process dies, however it dies.

    Args:
        workers: how many comparisons at a time.
        timeout_seconds: processor time for one comparison; for a user's function also the time that it sleeps or
            waits for others. Thirty times as much by the clock is too late as well.
        memory_mb: address space of a worker in MiB, its own 60 included.
        mode: ``strict``, what training pays for, or ``lenient``, for grading responses of others.
        methods: how answers are extracted, in order (see `answers.extraction.extract`); the mode's if not given.
        function: `package.module:function`, which judges in place of all that; it runs in the workers.
        settings: what the function is given by name.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_seconds: float = 2.0,
        memory_mb: int = 1024,
        mode: Mode = "strict",
        methods: tuple[Method, ...] | None = None,
        function: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._graded = function is not None
        self._lenient = mode == "lenient"
        self._methods = methods or METHODS[mode]
        self._pool: Pool[Comparison | Grading] = Pool(
            {"function": function, "settings": dict(settings or {})}, workers, timeout_seconds, memory_mb
        )

    def judge(self, claims: Sequence[Claim]) -> list[Judgement]:
        """One judgement a claim, in order.

        A claim whose comparison runs late or kills its worker is judged ``timeout`` or ``error``; the other
        claims are not touched by it.

        Raises:
            VerifierUnavailable: workers do not start, or the verifier is closed meanwhile.
        """
        return list(self.judge_each(claims))

    def judge_each(self, claims: Sequence[Claim]) -> Generator[Judgement, None, None]:
        """The judgements in order, each as soon as it and those before it are known."""
        looks = [self._look(claim) for claim in claims]
        # A policy repeats itself: one hostile answer given 500 times must cost one deadline, not 500.
        tasks = dict.fromkeys(found for _, found in looks if not isinstance(found, str))
        known: dict[Comparison | Grading, Judgement] = {}
        with closing(self._pool.run(list(tasks))) as results:
            for answer, found in looks:
                if isinstance(found, str):
                    yield Judgement(found, answer, 0.0)
                    continue
                while found not in known:
                    task, report, milliseconds = next(results)
                    known[task] = _judgement(report, milliseconds)
                yield replace(known[found], extracted=answer)

    def _look(self, claim: Claim) -> tuple[str | None, Verdict | Comparison | Grading]:
        """The answer that a claim states, and the verdict at sight or the work that finds it."""
        if not self._graded:
            answer = extracted_answer(claim, self._methods)
            return answer, verdict_at_sight(claim, answer, self._lenient)
        if claim.truncated:
            return None, "truncated"
        return None, Grading(claim.problem, claim.gold, claim.response)

    def close(self) -> None:
        """End the workers and wait until they are gone. A later `judge` would start new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _judgement(report: dict[str, Any], milliseconds: float) -> Judgement:
    """What a worker's report says: a verdict, or what a user's function has returned."""
    if "verdict" in report:
        return Judgement(report["verdict"], None, milliseconds)
    outcome = report["outcome"]
    if outcome is None:
        return Judgement("unparsed", None, milliseconds)
    return Judgement("correct" if outcome == 1 else "wrong", None, milliseconds, outcome)
