"""The order of the training problems in a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from reval_core.problems.problem import Problem


class PromptOrder:
    """The order of the training problems: seeded epochs, in which every problem occurs once."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self._problems = {problem.prompt_id: problem for problem in problems}
        self._seed = seed
        self._epochs: dict[tuple[int, int], list[str]] = {}

    def take(self, start: int, count: int, prompts: int) -> list[Problem]:
        """The next `count` problems after the first `start`.

        The problems of a round are distinct if every round takes all of its prompts.

        Args:
            start: number of problems taken before.
            count: number of problems to take.
            prompts: problems per round of the run.
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
        # The round in which this epoch starts has taken the end of the previous epoch: those problems come last.
        shared = epoch * len(order) % prompts
        taken = set(self._epochs[epoch - 1, prompts][-shared:]) if shared else set()
        return [name for name in order if name not in taken] + [name for name in order if name in taken]


def shuffled(ids: list[str], seed: int, purpose: str) -> list[str]:
    """`ids` in an order that depends only on the arguments: by hash, independent of any library's RNG."""
    prefix = f"{seed}/{purpose}/"
    return sorted(ids, key=lambda name: (hashlib.sha256((prefix + name).encode()).digest(), name))
