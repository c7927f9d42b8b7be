"""A variant of a gold: how it was derived, and a response that states it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """A response derived from a gold. `kind` names the derivation."""

    kind: str
    response: str


def boxed(kind: str, answer: str) -> Variant:
    """Return a response that states an answer in a box, as training prompts request."""
    return Variant(kind, rf"So the answer is $\boxed{{{answer}}}$.")


def distinct(variants: Iterable[Variant]) -> list[Variant]:
    """Return the variants without repeated responses, in order."""
    first: dict[str, Variant] = {}
    for variant in variants:
        first.setdefault(variant.response, variant)
    return list(first.values())
