"""The order in which a run asks its problems."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from reval_core.problems.problem import Problem


class PromptOrder:
    """The order in which a run asks its problems: seeded epochs, every problem once before any twice."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self._problems = {problem.prompt_id: problem for problem in problems}
        self._seed = seed
        self._epochs: dict[tuple[int, int], list[str]] = {}

    def take(self, start: int, count: int, prompts: int) -> list[Problem]:
        """The next `count` problems after the first `start`, in a run that asks `prompts` a round.

        No two of a round are the same where rounds ask for all of their prompts.
        """
        return [self._at(position, prompts) for position in range(start, start + count)]

    def _at(self, position: int, prompts: int) -> Problem:
        last, place = divmod(position, len(self._problems))
        for epoch in range(last + 1):
            if (epoch, prompts) not in self._epochs:
                self._epochs[epoch, prompts] = self._order(epoch, prompts)
        return self._problems[self._epochs[last, prompts][place]]

    def _order(self, epoch: int, prompts: int) -> list[str]:
        order = shuffled(list(self._problems), self._seed, f"epoch {epoch}")
        # The round that this epoch begins in has asked the end of the epoch before: those come last now.
        shared = epoch * len(order) % prompts
        asked = set(self._epochs[epoch - 1, prompts][-shared:]) if shared else set()
        return [name for name in order if name not in asked] + [name for name in order if name in asked]


def shuffled(ids: list[str], seed: int, purpose: str) -> list[str]:
    """`ids` in an order that depends on nothing but the arguments: by hash, so no library's RNG matters."""
    prefix = f"{seed}/{purpose}/"
    return sorted(ids, key=lambda name: (hashlib.sha256((prefix + name).encode()).digest(), name))
