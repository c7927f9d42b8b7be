"""Arithmetic problems for tiny models: the problems, their splits, and demonstrations with mistakes.

The problems are enumerated and the split is a hash of the text. So no file needs to be shipped, and a held-out
problem can never occur in a demonstration.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


_WORDS = {"+": "sums", "-": "differences", "*": "products"}


def set_name(digits: int, operators: str) -> str:
    """The name of a set of such problems, such as `2-digit sums and products`."""
    return f"{digits}-digit {' and '.join(_WORDS[operator] for operator in operators)}"


@functools.lru_cache(maxsize=8)  # three digits have 810,000 problems, each of which is hashed
def problems(digits: int, operators: str, split: Literal["train", "held_out"]) -> tuple[tuple[str, str], ...]:
    """All problems and answers of a split, such as ("37+45=", "82"), with operands of exactly `digits` digits."""
    operands = range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)
    everything = (
        (f"{a}{operator}{b}=", str(_OPERATIONS[operator](a, b)))
        for operator in operators
        for a in operands
        for b in operands
    )
    return tuple((text, answer) for text, answer in everything if _held_out(text) == (split == "held_out"))


def demonstrations(
    pairs: Sequence[tuple[str, str]], right: float, count: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Draw `count` problems from `pairs`, with right answers for a fraction `right` of them.

    The other answers are plausible mistakes, each less frequent than the right answer. So a model fine-tuned on
    them has the knowledge of the right answer, but does not reliably give it.
    """
    chosen = rng.integers(len(pairs), size=count)
    is_right = rng.random(count) < right
    shown = []
    for index, good in zip(chosen, is_right, strict=True):
        problem, answer = pairs[index]
        shown.append((problem, answer if good else plausible_mistake(problem, answer, rng)))
    return shown


def plausible_mistake(problem: str, answer: str, rng: np.random.Generator) -> str:
    """A wrong answer as it results from calculating by hand, with no more digits than right answers can have."""
    while True:
        slip = _SLIPS[int(rng.choice(len(_SLIPS), p=_SLIP_SHARES))]
        wrong = slip(problem, int(answer), rng)
        if wrong is not None and (wrong >= 0 or int(answer) < 0) and wrong != int(answer):
            return str(wrong)


def _off_by_one(problem: str, answer: int, rng: np.random.Generator) -> int | None:
    return answer + int(rng.choice((-1, 1)))


def _off_by_ten(problem: str, answer: int, rng: np.random.Generator) -> int | None:
    return answer + int(rng.choice((-10, 10)))


def _carry(problem: str, answer: int, rng: np.random.Generator) -> int | None:
    """The carry of the last digits is forgotten, or added where there is none."""
    left, operator, right = _parse(problem)
    return answer - 10 if operator == "+" and left % 10 + right % 10 >= 10 else answer + 10


def _misread(problem: str, answer: int, rng: np.random.Generator) -> int | None:
    """One digit of one operand is misread."""
    left, operator, right = _parse(problem)
    operand = left if rng.random() < 0.5 else right
    unit = 10 ** int(rng.integers(len(str(operand))))
    misread = operand + (int(rng.integers(10)) - operand // unit % 10) * unit
    return _OPERATIONS[operator](misread, right) if operand is left else _OPERATIONS[operator](left, misread)


def _swapped(problem: str, answer: int, rng: np.random.Generator) -> int | None:
    """Two adjacent digits of the answer are swapped."""
    digits = str(answer)
    if answer < 10:
        return None
    place = int(rng.integers(len(digits) - 1))
    swapped = digits[:place] + digits[place + 1] + digits[place] + digits[place + 2 :]
    return None if swapped.startswith("0") else int(swapped)


_SLIPS = (_off_by_one, _off_by_ten, _carry, _misread, _swapped)
_SLIP_SHARES = np.array([4, 2, 2, 1, 0.5]) / 9.5


def _parse(problem: str) -> tuple[int, str, int]:
    match = re.fullmatch(r"(\d+)([-+*])(\d+)=", problem)
    assert match is not None, f"not a problem of this module: {problem!r}"
    return int(match[1]), match[2], int(match[3])


def _held_out(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % 10 == 0
