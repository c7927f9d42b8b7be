"""Groups of responses to one prompt during generation: the requests to the engine, and the responses so far."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from reval_core.engines.engine import Completion, Request
from reval_core.problems import Problem
from reval_core.replay_buffer.trajectories import GeneratedResponse, SampleRequest


@dataclass
class Group:
    """The N responses to one prompt. They are published together, since rewards may be compared within a group."""

    requests: list[SampleRequest]
    responses: list[GeneratedResponse | None]
    """The response so far to each request; None if nothing has been generated yet."""

    @classmethod
    def new(cls, requests: Sequence[SampleRequest]) -> Group:
        """A group for which nothing has been generated yet."""
        return cls(list(requests), [None] * len(requests))

    @property
    def finished(self) -> bool:
        """Whether every response is complete."""
        return not self.unfinished

    @property
    def unfinished(self) -> list[int]:
        """The indices within the group of the responses that are not complete."""
        return [index for index, one in enumerate(self.responses) if one is None or one.finish_reason == "partial"]

    def request(self, index: int) -> Request:
        """The engine request that continues an incomplete response."""
        request, partial = self.requests[index], self.responses[index]
        return Request(request.prompt_tokens, request.seed, partial.tokens if partial is not None else ())

    def add(self, index: int, completion: Completion, policy_round: int) -> None:
        """Append a completion by the policy of `policy_round` to a response."""
        partial = self.responses[index] or GeneratedResponse([], [], [], "partial")
        self.responses[index] = GeneratedResponse(
            partial.tokens + completion.tokens,
            partial.logprobs + completion.logprobs,
            partial.policy_rounds + [policy_round] * len(completion.tokens),
            completion.finish_reason,
        )

    def reseeded(self, seeds: Sequence[int]) -> Group:
        """The group with new seeds for incomplete responses, for a later round that continues it.

        With the old seeds the engine would reuse the random numbers of the first tokens for those after the cut.
        """
        requests = [
            replace(one, seed=seeds[index]) if index in self.unfinished else one
            for index, one in enumerate(self.requests)
        ]
        return Group(requests, self.responses)


def finished_groups(
    groups: Mapping[int, Group],
    policy_round: int,
    generate: Callable[[Sequence[Request]], Iterable[tuple[int, Completion]]],
    tick: Callable[[int, int], None],
) -> Generator[int, None, None]:
    """Generate the incomplete responses of these groups.

    Args:
        groups: The groups by number. The caller may remove groups during the iteration.
        policy_round: The round of the policy that generates.
        generate: Called with all requests; yields the index of a request and its completion.
        tick: Called with the number of completed and of all responses.

    Yields:
        The number of each group once all of its responses are complete.
    """
    pending = [(group, number, index) for number, group in groups.items() for index in group.unfinished]
    requests = [group.request(index) for group, _, index in pending]
    for completed, (place, completion) in enumerate(generate(requests), start=1):
        group, number, index = pending[place]
        group.add(index, completion, policy_round)
        tick(completed, len(requests))
        if group.finished:
            yield number


def requests_and_responses(groups: Sequence[Group]) -> tuple[list[SampleRequest], list[GeneratedResponse]]:
    """The requests and the responses of these groups, concatenated. Every response must have been started."""
    responses = [one for group in groups for one in group.responses if one is not None]
    return [one for group in groups for one in group.requests], responses


def cut_off_groups(partials: pa.Table, samples: int) -> list[Group]:
    """The groups of `samples` responses each that were cut off in a round, from its table `partials`."""
    rows = partials.to_pylist()
    return [_group(rows[first : first + samples]) for first in range(0, len(rows), samples)]


def _group(rows: list[dict[str, Any]]) -> Group:
    requests = [
        SampleRequest(
            problem=Problem(row["prompt_id"], row["problem"], row["gold"], row["gold_mode"], row["problem_set"]),
            sample=row["sample"],
            prompt=row["prompt"],
            prompt_tokens=row["prompt_tokens"],
            seed=row["seed"],
        )
        for row in rows
    ]
    responses = [
        GeneratedResponse(
            row["response_tokens"], row["engine_logprobs"], row["policy_rounds"], row["finish_reason"]
        )
        for row in rows
    ]
    return Group(requests, list(responses))
