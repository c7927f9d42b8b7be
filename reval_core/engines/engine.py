"""The engine interface: the contract between a run and whatever generates its responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FinishReason = Literal["stop", "length", "partial"]

Enough = Callable[[int], bool]
"""Told how many tokens have been generated so far, it says whether generation ends now."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

    temperature: float
    max_tokens: int
    """The longest response, the token that ends it included."""
    stop_ids: tuple[int, ...]
    """The tokens that end a response."""


@dataclass(frozen=True)
class Request:
    """One response that is wanted."""

    prompt_tokens: Sequence[int]
    seed: int
    """Of everything random about this response. An engine that does not stream repeats itself with it."""
    written: Sequence[int] = ()
    """What earlier policies have written of the response; the rest of it is wanted."""


@dataclass(frozen=True)
class Completion:
    """One response, without what was `written` before."""

    tokens: list[int]
    """The last one is a stop token if the reason is `stop`."""
    logprobs: list[float]
    """log π of each token at the sampling temperature, as the engine computed it."""
    finish_reason: FinishReason
    """`stop`: a stop token came; `length`: it is max_tokens long; `partial`: generation was cut off."""


class Engine(Protocol):
    """Generates with the weights that it was given last."""

    name: str
    """What the run's summary and the trajectories call it."""
    streams: bool
    """Whether responses come one by one, as they end, and can be cut off. Otherwise they are one batch."""

    @property
    def dtype(self) -> torch.dtype | None:
        """What it rounds a policy's weights to; None if it generates with the learner's own."""

    def load(self, model: PreTrainedModel, policy: str) -> None:
        """Take the weights of `model`, which `policy` names. Nothing generated before is reused."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, enough: Enough | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """The place of each request and its completion, as they end.

        Once `enough` says so, the rest come as `partial`. Only an engine that streams asks it.
        """

    def rest(self) -> None:
        """Leave the memory of a shared device to the learner until the next `load`."""

    def close(self) -> None:
        """Free what the engine holds. Calling it again does nothing."""


def in_batches(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, size: int, enough: Enough | None = None
) -> Iterator[tuple[int, Completion]]:
    """As `Engine.generate`; an engine that does not stream is given `size` requests at a time."""
    size = len(requests) if engine.streams else size
    for first in range(0, len(requests), size):
        completions = engine.generate(requests[first : first + size], sampling, enough)
        yield from ((first + place, completion) for place, completion in completions)
