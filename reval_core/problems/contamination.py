r"""Contamination check: training problems that also occur in a test set, by normalised text or by 13-grams of
words.

docs/problems.md describes measurements on real sets and the reasons for the rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reval_core.problems.problem import Problem

WORDS = 13
"""n of the n-grams: problems that share this many consecutive words overlap."""

STOCK = 5
"""n-grams that occur in more than this many different problems are stock phrases and do not count on their own."""

_Gram = tuple[str, ...]

# Commands that only affect spacing, size or delimiters: `\left(` is `(`.
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|[bB]igg?[lr]?|quad|qquad)(?![A-Za-z])|\\[,;:! ()\[\]]|\$|~|\*\*"
)
_FRACTION = re.compile(r"\\[dt]frac(?![A-Za-z])")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_LONE = re.compile(r"\{\s*([^{}\s\\])\s*\}")
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])([,;:])\s+(?=[0-9])")
_STOPS = re.compile(r"[.,;:?\"`]+(?![0-9])")
_OUTSIDE = re.compile(r"\s+(?=[^\w\s])|(?<=[^\w\s])\s+")
_BARE = re.compile(r"[0-9a-z+*/=()-]+")  # already normalised, such as arithmetic
_LOOKALIKES = str.maketrans({"−": "-", "–": "-", "—": "-", "’": "'", "‘": "'", "“": '"', "”": '"'})


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training problem that also occurs in a test set."""

    train: Problem
    test: Problem
    shared: str
    """The shared n-gram, normalised; empty if the whole normalised texts are equal."""


def contaminated(train: Sequence[Problem], tests: Sequence[Problem]) -> list[Overlap]:
    """All overlapping pairs of a training and a test problem, in the order of the training problems.

    Two problems overlap if their normalised texts are equal, or if they share 13 consecutive words. A 13-gram that
    occurs in more than STOCK different problems counts only if half of the test problem's 13-grams are shared.
    """
    texts = [normalised(problem.problem) for problem in train]
    test_texts = [normalised(problem.problem) for problem in tests]
    equal: dict[str, list[int]] = defaultdict(list)
    holding: dict[_Gram, set[int]] = defaultdict(set)
    spread: dict[_Gram, set[str]] = defaultdict(set)
    for number, text in enumerate(test_texts):
        equal[text].append(number)
        for gram in _grams(text):
            holding[gram].add(number)
            spread[gram].add(text)
    if not holding:
        shared: dict[str, list[_Gram]] = {}
    else:
        shared = {text: [gram for gram in _grams(text) if gram in holding] for text in dict.fromkeys(texts)}
        for text, grams in shared.items():
            for gram in grams:
                spread[gram].add(text)
    found = []
    for problem, text in zip(train, texts, strict=True):
        hits = dict.fromkeys(equal.get(text, ()), "")
        for number, grams in _by_test(shared.get(text, ()), holding).items():
            rare = next((gram for gram in grams if len(spread[gram]) <= STOCK), None)
            if rare is None and 2 * len(set(grams)) >= len(set(_grams(test_texts[number]))):
                rare = grams[0]
            if rare is not None:
                hits.setdefault(number, " ".join(rare))
        found += [Overlap(problem, tests[number], hits[number]) for number in sorted(hits)]
    return found


def normalised(text: str) -> str:
    r"""A problem's text without differences between copies: case, space, LaTeX delimiters and layout, punctuation.

    Digits, letters and operators are kept: `1+2=` is neither `12=` nor `1-2=`. Words are separated by one space.
    """
    if _BARE.fullmatch(text):
        return text
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_LOOKALIKES)
    plain = _LAYOUT.sub(" ", plain.lower())
    if "\\" in plain:
        plain = _FRACTION.sub(r"\\frac", _TEXT.sub(r" \1 ", plain))
    plain = _LONE.sub(r"\1", plain)
    plain = _STOPS.sub(" ", _BETWEEN_DIGITS.sub(r"\1", plain))
    return " ".join(_OUTSIDE.sub("", plain).split()) or text


def _grams(text: str) -> list[_Gram]:
    """The 13-grams of a normalised text; none if it is shorter."""
    words = text.split()
    return [tuple(words[first : first + WORDS]) for first in range(len(words) - WORDS + 1)]


def _by_test(grams: Sequence[_Gram], holding: dict[_Gram, set[int]]) -> dict[int, list[_Gram]]:
    """The shared 13-grams by the number of the test problem."""
    found: dict[int, list[_Gram]] = defaultdict(list)
    for gram in grams:
        for number in holding[gram]:
            found[number].append(gram)
    return found
