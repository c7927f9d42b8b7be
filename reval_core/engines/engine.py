"""The engine interface: the contract between a run and the backend that generates its responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FinishReason = Literal["stop", "length", "partial"]

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


@dataclass(frozen=True)
class Request:
    """A request for one response."""

    prompt_tokens: Sequence[int]
    seed: int
    """Seeds all randomness of this response. An engine that does not stream is reproducible with it."""
    written: Sequence[int] = ()
    """The tokens of the response that earlier policies have written; generation continues after them."""


@dataclass(frozen=True)
class Completion:
    """One response, without the tokens in `Request.written`."""

    tokens: list[int]
    """Token ids. The last one is a stop token if `finish_reason` is `stop`."""
    logprobs: list[float]
    """log π of each token at the sampling temperature, in nats, as computed by the engine."""
    finish_reason: FinishReason
    """`stop`: a stop token was sampled; `length`: max_tokens reached; `partial`: generation was interrupted."""


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
        self, requests: Sequence[Request], sampling: Sampling, enough: Enough | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Generate one completion per request.

        Args:
            requests: The requests.
            sampling: The decoding parameters.
            enough: Stops generation once it returns True; unfinished responses are then `partial`. Only called by
                engines that stream.

        Yields:
            The index of a request and its completion, as responses finish.
        """

    def release_memory(self) -> None:
        """Release the memory of a GPU that is shared with the learner, until the next `load`."""

    def close(self) -> None:
        """Free the engine's resources. Calling it again does nothing."""


def in_batches(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, size: int, enough: Enough | None = None
) -> Iterator[tuple[int, Completion]]:
    """Like `Engine.generate`, but pass `size` requests at a time to an engine that does not stream."""
    size = len(requests) if engine.streams else size
    for first in range(0, len(requests), size):
        completions = engine.generate(requests[first : first + size], sampling, enough)
        yield from ((first + place, completion) for place, completion in completions)
