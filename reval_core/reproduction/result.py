"""What a figure came to: figures with their intervals, a verdict, and what is drawn of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["reproduced", "in part", "not", "undecided", "searched"]


@dataclass(frozen=True)
class Line:
    """One curve: a value at each x, and where there are several runs their lowest and highest."""

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
    """What x counts, in the singular."""
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
    """What was measured, and what it says about the claim."""

    verdict: Verdict
    says: str
    """The measured numbers in a sentence or two."""
    numbers: dict[str, Any]
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    """The SQL that each run was asked."""

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        return asdict(self)


def in_words(said: Verdict, paper: str) -> str:
    """A verdict as a reader should take it: what the paper left open cannot be reproduced, it holds or does not."""
    if paper:
        return {"not": "not reproduced"}.get(said, said)
    return {"reproduced": "holds", "not": "does not hold"}.get(said, said)


def verdict(*holds: bool | None) -> Verdict:
    """`reproduced` if every part of a claim holds, `in part` if some do; None is a part that seeds leave open."""
    if all(holds):
        return "reproduced"
    if any(holds):
        return "in part"
    return "undecided" if None in holds else "not"
