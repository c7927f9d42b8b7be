"""A prompt's responses while they are generated: what is asked of the engine, and what has come of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from reval_core.engines.engine import Completion, Request
from reval_core.problems import Problem
from reval_core.replay_buffer.trajectories import Asked, Written


@dataclass
class Group:
    """The N responses of one prompt. They are published together, since rewards may be compared within a group."""

    asked: list[Asked]
    written: list[Written | None]
    """What there is of each; None where nothing has been generated yet."""

    @classmethod
    def new(cls, asked: Sequence[Asked]) -> Group:
        """A group that nothing has been generated of."""
        return cls(list(asked), [None] * len(asked))

    @property
    def finished(self) -> bool:
        """Whether every response has ended."""
        return not self.unfinished

    @property
    def unfinished(self) -> list[int]:
        """The responses that have not ended, by their places in the group."""
        return [number for number, one in enumerate(self.written) if one is None or one.finish_reason == "partial"]

    def request(self, number: int) -> Request:
        """What is to be asked of the engine for a response that has not ended."""
        asked, before = self.asked[number], self.written[number]
        return Request(asked.prompt_tokens, asked.seed, before.tokens if before is not None else ())

    def add(self, number: int, completion: Completion, policy_round: int) -> None:
        """Put what the policy of `policy_round` wrote behind what there is of a response."""
        before = self.written[number] or Written([], [], [], "partial")
        self.written[number] = Written(
            before.tokens + completion.tokens,
            before.logprobs + completion.logprobs,
            before.policy_rounds + [policy_round] * len(completion.tokens),
            completion.finish_reason,
        )

    def reseeded(self, seeds: Sequence[int]) -> Group:
        """The group as a later round goes on with it: with new seeds where a response has not ended.

        With the old ones the engine would draw the tokens after the cut with the numbers of the first ones.
        """
        asked = [
            replace(one, seed=seeds[number]) if number in self.unfinished else one
            for number, one in enumerate(self.asked)
        ]
        return Group(asked, self.written)


def finished_groups(
    groups: Mapping[int, Group],
    policy_round: int,
    generate: Callable[[Sequence[Request]], Iterable[tuple[int, Completion]]],
    tick: Callable[[int, int], None],
) -> Generator[int, None, None]:
    """Ask for what is open in these groups; gives each group's number once all of it has ended.

    The caller may take groups out meanwhile. `tick` is told how many of how many responses have come.
    """
    places = [(group, number, one) for number, group in groups.items() for one in group.unfinished]
    requests = [group.request(one) for group, _, one in places]
    for ended, (place, completion) in enumerate(generate(requests), start=1):
        group, number, one = places[place]
        group.add(one, completion, policy_round)
        tick(ended, len(requests))
        if group.finished:
            yield number


def asked_and_written(groups: Sequence[Group]) -> tuple[list[Asked], list[Written]]:
    """The responses of groups of which each has begun, one after the other."""
    written = [one for group in groups for one in group.written if one is not None]
    return [one for group in groups for one in group.asked], written


def cut_off_groups(partials: pa.Table, samples: int) -> list[Group]:
    """The groups, of `samples` responses each, that a round was cut off in, from its table `partials`."""
    rows = partials.to_pylist()
    return [_group(rows[first : first + samples]) for first in range(0, len(rows), samples)]


def _group(rows: list[dict[str, Any]]) -> Group:
    asked = [
        Asked(
            problem=Problem(row["prompt_id"], row["problem"], row["gold"], row["gold_mode"], row["problem_set"]),
            sample=row["sample"],
            prompt=row["prompt"],
            prompt_tokens=row["prompt_tokens"],
            seed=row["seed"],
        )
        for row in rows
    ]
    written = [
        Written(row["response_tokens"], row["engine_logprobs"], row["policy_rounds"], row["finish_reason"])
        for row in rows
    ]
    return Group(asked, list(written))
