"""What an update learns from, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reval_core.model.noise import Noise
from reval_core.model.token_batch import Rows


@dataclass(frozen=True)
class Drawn:
    """The B trajectories of one update. `Rows` hold one array per trajectory, as long as its prompt or response."""

    ids: np.ndarray
    prompts: Rows
    responses: Rows
    written: Rows
    engine_logprobs: Rows
    old_logprobs: Rows
    """log π(a_h|s_h) of the policy that wrote the response, by the trainer; NaN if unknown, like the engine's."""
    truncated: np.ndarray
    """[B] bool: the response was cut at the length limit."""
    weight: np.ndarray
    """[B] importance weights of the draw."""
    reward: np.ndarray
    advantage: np.ndarray
    log_ref: np.ndarray
    value_ref: np.ndarray
    identity: str
    """The digest of everything that the learner reads from the draw."""
    noise: Noise | None = None
    """The measured noise of scores; None for the minimum of the learner's precision."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def tokens(self) -> np.ndarray:
        """The number of tokens written by the policy [B]."""
        return np.array([int(mask.sum()) for mask in self.written])

    @cached_property
    def mean_tokens(self) -> float:
        """Mean tokens written by the policy per trajectory."""
        return int(self.tokens.sum()) / len(self)


@dataclass(frozen=True)
class Update:
    """The result of one update. Arrays are [B], in the order of the draw, with values from before the step."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    delta: np.ndarray
    value_term: np.ndarray
    log_ratio: np.ndarray
    metrics: dict[str, float]
    """The objective's own metrics, as means over the trajectories."""
    skipped: bool
    """Whether the optimizer step was skipped because all residuals may be noise."""
