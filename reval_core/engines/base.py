"""The engine interface: the contract between a run and whatever generates its responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

    temperature: float
    max_tokens: int
    """The longest response, the end-of-sequence token included."""


@dataclass(frozen=True)
class Request:
    """One response that is wanted."""

    prompt_tokens: Sequence[int]
    seed: int
    """The response is a function of the weights, the prompt, the batch's composition and this number."""


@dataclass(frozen=True)
class Completion:
    """One response. `tokens` ends with the end-of-sequence token if the reason is `stop`."""

    tokens: list[int]
    logprobs: list[float]
    """log π of each token at the sampling temperature, as the engine computed it."""
    finish_reason: FinishReason


class Engine(Protocol):
    """Generates with the weights that it was given last."""

    name: str
    """What the run's summary and the trajectories call it."""

    def load(self, model: PreTrainedModel) -> None:
        """Take the weights of `model`. Nothing generated before is reused."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, in order. The requests are one batch."""

    def close(self) -> None:
        """Free what the engine holds. Calling it again does nothing."""
