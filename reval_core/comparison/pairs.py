"""Two sides on their shared problems: the difference, its interval, and the problems that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reval_core.comparison.sides import Answers, Problem, Side
from reval_core.errors import InputError
from reval_core.evaluation.intervals import Interval, macro
from reval_core.evaluation.metrics import sign_test

SEED = 0
"""Seed of all intervals, so that the same runs give the same results."""


@dataclass(frozen=True)
class Row:
    """A problem with the answers of both sides."""

    problem: Problem
    baseline: Answers
    run: Answers

    @property
    def difference(self) -> float:
        """The run's share of right responses minus the baseline's."""
        return self.run.share - self.baseline.share


@dataclass(frozen=True)
class SideResult:
    """The results of one side on some problems."""

    samples: tuple[int, int]
    """Minimum and maximum number of responses per problem."""
    avg: Interval
    """avg@k: the mean over problems of the share of right responses."""
    tokens: float
    """Mean tokens per response, averaged over problems."""
    truncated: float
    """Share of truncated responses, averaged over problems."""


@dataclass(frozen=True)
class Part:
    """Both sides on the problems of one set, or on the average over the sets."""

    name: str
    problems: int
    baseline: SideResult
    run: SideResult
    difference: Interval
    """Paired difference in avg@k: the run minus the baseline."""
    better: int
    """Number of problems with a larger share of right responses in the run."""
    worse: int
    gained: int
    """Number of problems that the run solves and the baseline does not (more than half of the responses right)."""
    lost: int

    @property
    def same(self) -> int:
        """Number of problems with the same share of right responses."""
        return self.problems - self.better - self.worse

    @property
    def p(self) -> float:
        """The two-sided p-value of the exact sign test."""
        return sign_test(self.better, self.worse)


@dataclass(frozen=True)
class Pair:
    """A run compared with the baseline."""

    baseline: Side
    run: Side
    rows: list[Row]
    """The shared problems, the run's largest gains first and its largest losses last."""
    parts: list[Part]
    """One per problem set; with several sets, their average last."""
    only_baseline: int
    """Number of problems that only the baseline was evaluated on; they are ignored."""
    only_run: int

    @property
    def whole(self) -> Part:
        """The part over all problems: the only set, or the average."""
        return self.parts[-1]


AVERAGE = "average of the sets"


def pair(baseline: Side, run: Side) -> Pair:
    """Compare a run with the baseline.

    Raises:
        InputError: They share no problem.
    """
    shared = [problem for problem in baseline.answers if problem in run.answers]
    if not shared:
        raise InputError(
            f"{run.name}: shares no problem with {baseline.name} ({_counts(run)}, and {_counts(baseline)}); a "
            "problem is shared if its set, prompt_id, text and gold are the same"
        )
    rows = [Row(problem, baseline.answers[problem], run.answers[problem]) for problem in shared]
    sets: dict[str, list[Row]] = {}
    for row in rows:
        sets.setdefault(row.problem.problem_set, []).append(row)
    parts = [_part(name, {name: members}) for name, members in sets.items()]
    if len(sets) > 1:
        parts.append(_part(AVERAGE, sets))
    rows.sort(key=lambda row: (-row.difference, row.problem.problem_set, row.problem.prompt_id))
    return Pair(baseline, run, rows, parts, len(baseline.answers) - len(shared), len(run.answers) - len(shared))


def side_result(sets: Sequence[Sequence[Answers]]) -> SideResult:
    """Return the results of a side on sets of problems, each with equal weight."""
    samples = [one.samples for members in sets for one in members]
    shares = {str(place): np.array([one.share for one in members]) for place, members in enumerate(sets)}
    return SideResult(
        samples=(min(samples), max(samples)),
        avg=macro(shares, SEED),
        tokens=float(np.mean([np.mean([one.tokens for one in members]) for members in sets])),
        truncated=float(np.mean([np.mean([one.truncated for one in members]) for members in sets])),
    )


def _part(name: str, sets: dict[str, list[Row]]) -> Part:
    rows = [row for members in sets.values() for row in members]
    differences = {name: np.array([row.difference for row in members]) for name, members in sets.items()}
    return Part(
        name=name,
        problems=len(rows),
        baseline=side_result([[row.baseline for row in members] for members in sets.values()]),
        run=side_result([[row.run for row in members] for members in sets.values()]),
        difference=macro(differences, SEED),
        better=sum(row.difference > 0 for row in rows),
        worse=sum(row.difference < 0 for row in rows),
        gained=sum(row.run.solved and not row.baseline.solved for row in rows),
        lost=sum(row.baseline.solved and not row.run.solved for row in rows),
    )


def _counts(side: Side) -> str:
    counts: dict[str, int] = {}
    for problem in side.answers:
        counts[problem.problem_set] = counts.get(problem.problem_set, 0) + 1
    return ", ".join(f"{count} of {name}" for name, count in counts.items())
