"""One answer of the audit: what was done to a gold, and a response that states the outcome."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """A response made from a gold. `kind` says how, in a word or two."""

    kind: str
    response: str


def boxed(kind: str, answer: str) -> Variant:
    """A response that states an answer in a box, as training asks for it."""
    return Variant(kind, rf"So the answer is $\boxed{{{answer}}}$.")


def distinct(variants: Iterable[Variant]) -> list[Variant]:
    """The first of those with the same response, in order."""
    first: dict[str, Variant] = {}
    for variant in variants:
        first.setdefault(variant.response, variant)
    return list(first.values())
