"""Arithmetic that the embedded model learns: problems, their splits, and demonstrations with mistakes.

The problems are enumerated and the split is a hash of the text, so no file needs to be shipped and no
held-out problem can ever stand in a demonstration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def problems(digits: int, operators: str, split: Literal["train", "held_out"]) -> list[tuple[str, str]]:
    """Every problem such as ("37+45=", "82") with operands of exactly `digits` digits, of one split."""
    operands = range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)
    everything = (
        (f"{a}{operator}{b}=", str(_OPERATIONS[operator](a, b)))
        for operator in operators
        for a in operands
        for b in operands
    )
    return [(text, answer) for text, answer in everything if _held_out(text) == (split == "held_out")]


def demonstrations(
    pairs: list[tuple[str, str]], right: float, count: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """`count` problems drawn from `pairs` with answers of which a share `right` is right.

    The others are mistakes that a pupil makes, so that a model fitted to them knows the right answer
    without preferring it.
    """
    chosen = rng.integers(len(pairs), size=count)
    is_right = rng.random(count) < right
    return [
        pairs[index] if good else (pairs[index][0], plausible_mistake(pairs[index][1], rng))
        for index, good in zip(chosen, is_right, strict=True)
    ]


def plausible_mistake(answer: str, rng: np.random.Generator) -> str:
    """A wrong answer of the kind that a slip in adding by hand gives: a digit or a carry off by one."""
    value = int(answer)
    steps = [1, -1, 10, -10, 100, -100, 2, -2, 11, -9]
    wrong = value + steps[int(rng.integers(len(steps)))]
    return str(wrong)


def _held_out(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % 10 == 0
