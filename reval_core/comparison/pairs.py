"""Two sides on the problems that both were asked: how they differ, how surely, and on which problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reval_core.comparison.sides import Answers, Problem, Side
from reval_core.errors import InputError
from reval_core.evaluation.metrics import Interval, macro, sign_test

SEED = 0
"""Of all intervals: the same runs give the same figures."""
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Row:
    """A problem, as both sides answered it."""

    problem: Problem
    baseline: Answers
    run: Answers

    @property
    def difference(self) -> float:
        """The run's share of right responses less the baseline's."""
        return self.run.share - self.baseline.share


@dataclass(frozen=True)
class Score:
    """How one side did on some problems."""

    samples: tuple[int, int]
    """The least and the most responses to a problem."""
    avg: Interval
    """avg@k: the mean over problems of the share of right responses."""
    tokens: float
    """A response; the mean over problems, as the following."""
    truncated: float


@dataclass(frozen=True)
class Part:
    """Both sides on the problems of one set, or on average over the sets."""

    name: str
    problems: int
    baseline: Score
    run: Score
    difference: Interval
    """In avg@k, paired: the run less the baseline."""
    better: int
    """Problems of which the run answers a larger share right."""
    worse: int
    gained: int
    """Problems that most of the run's responses solve and most of the baseline's do not."""
    lost: int

    @property
    def same(self) -> int:
        """Problems of which both answer the same share right."""
        return self.problems - self.better - self.worse

    @property
    def p(self) -> float:
        """Of the exact sign test: how often a coin would split the problems that differ so unevenly."""
        return sign_test(self.better, self.worse)


@dataclass(frozen=True)
class Pair:
    """A run against the baseline."""

    baseline: Side
    run: Side
    rows: list[Row]
    """The problems that both were asked; the run's largest gains first, its largest losses last."""
    parts: list[Part]
    """One a problem set; of several sets, their average last."""
    only_baseline: int
    """Problems that only the baseline was asked. They count for nothing here."""
    only_run: int

    @property
    def whole(self) -> Part:
        """All problems: the only set, or the average."""
        return self.parts[-1]


AVERAGE = "average of the sets"


def pair(baseline: Side, run: Side) -> Pair:
    """Compare a run with the baseline. Raises InputError if they share no problem."""
    shared = [problem for problem in baseline.answers if problem in run.answers]
    if not shared:
        raise InputError(
            f"{run.name}: shares no problem with {baseline.name} ({_asked(run)} against {_asked(baseline)}); a "
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


def score(sets: Sequence[Sequence[Answers]]) -> Score:
    """How a side did on sets of problems, each of equal weight."""
    samples = [one.samples for members in sets for one in members]
    shares = {str(place): np.array([one.share for one in members]) for place, members in enumerate(sets)}
    return Score(
        samples=(min(samples), max(samples)),
        avg=macro(shares, SEED, RESAMPLES, LEVEL),
        tokens=float(np.mean([np.mean([one.tokens for one in members]) for members in sets])),
        truncated=float(np.mean([np.mean([one.truncated for one in members]) for members in sets])),
    )


def _part(name: str, sets: dict[str, list[Row]]) -> Part:
    rows = [row for members in sets.values() for row in members]
    differences = {name: np.array([row.difference for row in members]) for name, members in sets.items()}
    return Part(
        name=name,
        problems=len(rows),
        baseline=score([[row.baseline for row in members] for members in sets.values()]),
        run=score([[row.run for row in members] for members in sets.values()]),
        difference=macro(differences, SEED, RESAMPLES, LEVEL),
        better=sum(row.difference > 0 for row in rows),
        worse=sum(row.difference < 0 for row in rows),
        gained=sum(row.run.solved and not row.baseline.solved for row in rows),
        lost=sum(row.baseline.solved and not row.run.solved for row in rows),
    )


def _asked(side: Side) -> str:
    counts: dict[str, int] = {}
    for problem in side.answers:
        counts[problem.problem_set] = counts.get(problem.problem_set, 0) + 1
    return ", ".join(f"{count} of {name}" for name, count in counts.items())
