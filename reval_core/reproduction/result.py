"""The result of a figure: values with intervals, a verdict, charts and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["reproduced", "in part", "not", "undecided", "searched"]


@dataclass(frozen=True)
class Line:
    """One curve: a value at each x, with the minimum and maximum over several runs."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Chart:
    """Curves on one pair of axes."""

    title: str
    lines: Sequence[Line]
    across: str = "round"
    """The unit of x, in the singular."""
    percent: bool = False
    log: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Result:
    """The measurements, and the verdict on the claim."""

    verdict: Verdict
    says: str
    """The measured numbers in a sentence or two."""
    numbers: dict[str, Any]
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    """The SQL executed on each run."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


def in_words(said: Verdict, paper: str) -> str:
    """Return a verdict in words: a claim of the paper is reproduced or not, that of an extension holds or not."""
    if paper:
        return {"not": "not reproduced"}.get(said, said)
    return {"reproduced": "holds", "not": "does not hold"}.get(said, said)


def origin(said: Verdict, paper: str) -> str:
    """Return where a figure comes from: its place in the paper, or the kind of study."""
    return paper or ("hyperparameter search" if said == "searched" else "extension of the paper")


def verdict(*holds: bool | None) -> Verdict:
    """Return `reproduced` if every part of a claim holds, `in part` if some do; None is an undecided part."""
    if all(holds):
        return "reproduced"
    if any(holds):
        return "in part"
    return "undecided" if None in holds else "not"
