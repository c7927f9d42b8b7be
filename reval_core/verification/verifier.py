r"""Judges responses: extracts the answer, then compares it with the gold in processes that can be killed.

Answers come from a policy in training, and comparing them can require computer algebra:
``\binom{10000000}{5000000}`` runs for minutes and holds the interpreter lock, so that no thread or signal handler
can stop it. Every such comparison therefore runs in a worker process with an address-space limit and a deadline
that this process enforces. A worker that exceeds it is killed and replaced, at the cost of a single verdict.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

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

if TYPE_CHECKING:  # the workers import this module, and pydantic takes memory and time
    from reval_core.config import Reward, Verification

# Part of cache keys. The number is incremented with each change of the rules here and in `reval_core.answers`; the
# libraries decide equality.
VERIFIER_VERSION = " ".join(
    ["4", *(f"{name}-{version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy"))]
)


class Verifier:
    """Judges claims with a pool of worker processes that start with the first claim that needs one.

    Safe to use from any thread or process; calls from several threads share the workers. Close it, or use it as a
    context manager, to stop the workers. They also end when this process dies, for any reason.

    Args:
        workers: The maximum number of concurrent comparisons.
        timeout_seconds: The limit of processor time per comparison; for a user's function it includes time spent
            sleeping or waiting for other processes. Wall time is limited to thirty times as much.
        memory_mb: The address-space limit of a worker in MiB, including about 60 MiB of its own.
        mode: ``strict``, for training rewards, or ``lenient``, for grading responses of other models.
        methods: The extraction methods in order (see `answers.extraction.extract`); by default those of the mode.
        function: A function `package.module:function` that judges responses instead. It runs in the workers.
        settings: Keyword arguments of the function.
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

    @classmethod
    def of(cls, verification: Verification, reward: Reward) -> Self:
        """A verifier with these settings."""
        return cls(
            workers=verification.workers,
            timeout_seconds=verification.timeout_seconds,
            memory_mb=verification.memory_mb,
            mode=verification.mode,
            methods=verification.methods,
            function=reward.function,
            settings=reward.settings,
        )

    def judge(self, claims: Sequence[Claim]) -> list[Judgement]:
        """Judge claims.

        A claim whose comparison exceeds its deadline or kills its worker is judged ``timeout`` or ``error``. Other
        claims are not affected.

        Returns:
            One judgement per claim, in order.

        Raises:
            VerifierUnavailable: Workers cannot be started, or the verifier was closed meanwhile.
        """
        return list(self.judge_each(claims))

    def judge_each(self, claims: Sequence[Claim]) -> Generator[Judgement, None, None]:
        """Like `judge`, but yield each judgement as soon as it and all earlier ones are known."""
        decisions = [self._decide(claim) for claim in claims]
        # Policies repeat themselves: a hostile answer that occurs 500 times must cost one deadline, not 500.
        tasks = dict.fromkeys(found for _, found in decisions if not isinstance(found, str))
        known: dict[Comparison | Grading, Judgement] = {}
        with closing(self._pool.run(list(tasks))) as results:
            for answer, found in decisions:
                if isinstance(found, str):
                    yield Judgement(found, answer, 0.0)
                    continue
                while found not in known:
                    task, report, milliseconds = next(results)
                    known[task] = _judgement(report, milliseconds)
                yield replace(known[found], extracted=answer)

    def _decide(self, claim: Claim) -> tuple[str | None, Verdict | Comparison | Grading]:
        """The answer that a claim states, and its verdict or the task that determines it."""
        if not self._graded:
            answer = extracted_answer(claim, self._methods)
            return answer, verdict_at_sight(claim, answer, self._lenient)
        if claim.truncated:
            return None, "truncated"
        return None, Grading(claim.problem, claim.gold, claim.response)

    def close(self) -> None:
        """Stop the workers and wait until they have ended. A later `judge` starts new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _judgement(report: dict[str, Any], milliseconds: float) -> Judgement:
    """The judgement from a worker's report: a verdict, or the value that a user's function returned."""
    if "verdict" in report:
        return Judgement(report["verdict"], None, milliseconds)
    outcome = report["outcome"]
    if outcome is None:
        return Judgement("unparsed", None, milliseconds)
    return Judgement("correct" if outcome == 1 else "wrong", None, milliseconds, outcome)
