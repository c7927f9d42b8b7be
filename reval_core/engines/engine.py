"""The engine interface: the contract between a run and the backend that generates its responses."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from reval_core.engines.response import Response

Enough = Callable[[int], bool]
"""Called with the number of tokens generated so far; returns whether to stop generating now."""


@dataclass(frozen=True)
class Sampling:
    """The decoding parameters of responses."""

    temperature: float
    max_tokens: int
    """The maximum length of a response, including its stop token."""
    stop_ids: tuple[int, ...]
    """The ids of the tokens that end a response."""


class Engine(Protocol):
    """Generates responses with the weights that were loaded last."""

    name: str
    """The engine's name in the run's summary and in the trajectories."""
    streams: bool
    """Whether responses arrive one by one as they finish and can be interrupted. Otherwise they are one batch."""

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that a policy's weights are rounded to; None if the engine shares the learner's weights."""

    def load(self, model: PreTrainedModel, policy: str) -> None:
        """Load the weights of `model`, identified by `policy`. No cached keys or values are reused."""

    def generate(
        self, requests: Sequence[Response], sampling: Sampling, enough: Enough | None = None
    ) -> Iterator[tuple[int, Response]]:
        """Generate what is missing of each response.

        Args:
            requests: Responses that are not complete. Generation continues after the tokens that they have.
            sampling: The decoding parameters.
            enough: Stops generation once it returns True; unfinished responses are then `partial`. Only called by
                engines that stream.

        Yields:
            The index of a request and its response, extended, as responses finish.
        """

    def release_memory(self) -> None:
        """Release the memory of a GPU that is shared with the learner, until the next `load`."""

    def close(self) -> None:
        """Free the engine's resources. Calling it again does nothing."""


def in_batches(
    engine: Engine,
    requests: Sequence[Response],
    sampling: Sampling,
    size: int,
    tick: Callable[[int, int], None],
    enough: Enough | None = None,
) -> Generator[tuple[int, Response]]:
    """Like `Engine.generate`, but pass `size` requests at a time to an engine that does not stream.

    `tick` is called with the number of finished and of all responses.
    """
    size = len(requests) if engine.streams else size
    done = 0
    for first in range(0, len(requests), size):
        for place, response in engine.generate(requests[first : first + size], sampling, enough):
            done += 1
            tick(done, len(requests))
            yield first + place, response
