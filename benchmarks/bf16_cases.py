"""How much of updates to the float32 masters is visible in a bfloat16 copy, and how noisy its log-probs are.

Needs only torch, transformers and numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.learner_cases import scores_in_updates
from reval_core.model.low_precision import in_float32
from reval_core.model.noise import LEAST, SIGNAL, measure
from reval_core.model.scoring import score
from reval_core.model.token_batch import TokenBatch, collate

PROMPT, LONGER = 8, 64


@dataclass(frozen=True)
class Changes:
    """Changes of log π since before the first update, [N], for the same tokens in each."""

    seen: np.ndarray
    """Of the copy as it computes, in bfloat16."""
    copied: np.ndarray
    """Of the copy's weights, computed in float32: `seen` without the noise of bfloat16 arithmetic."""
    true: np.ndarray
    """Of the masters, in float32."""


@dataclass(frozen=True)
class Slope:
    """A line through 0."""

    value: float
    error: float
    """Its standard error, NaN for a single sample."""
    residual: float
    """The rms of its residuals."""
    change: float
    """The rms of the independent variable."""


def slope(samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Slope:
    """The slope of y over x, for (y, x) of samples such as draws or texts.

    The error assumes only independent samples: the tokens of a text share their rounding.
    """
    products = np.array([(y * x).sum() for y, x in samples])
    squares = np.array([np.square(x).sum() for _, x in samples])
    value = products.sum() / squares.sum()
    count = len(samples)
    scale = np.sqrt(count / (count - 1)) if count > 1 else np.nan
    left = np.concatenate([y - value * x for y, x in samples])
    return Slope(
        value=float(value),
        error=float(scale * np.sqrt(np.square(products - value * squares).sum()) / squares.sum()),
        residual=float(np.sqrt(np.square(left).mean())),
        change=float(np.sqrt(squares.sum() / left.size)),
    )


@torch.inference_mode()
def token_logprobs(model: Any, batch: TokenBatch) -> np.ndarray:
    """log π [N] of all response tokens, one text after the other."""
    device = next(model.parameters()).device
    found: np.ndarray = score(model, batch.to(device)).logprobs[batch.mask.to(device)].double().cpu().numpy()
    return found


def follow(
    model: Any,
    masters: Callable[[], AbstractContextManager[Any]],
    batch: TokenBatch,
    step: Callable[[], Any],
    updates: Collection[int],
) -> dict[int, Changes]:
    """Take steps, and measure after each number of them in `updates`.

    Args:
        masters: A context in which the model, which is a copy, has the weights of its masters.
    """

    def logprobs() -> np.ndarray:
        seen = token_logprobs(model, batch)
        with in_float32(model):
            copied = token_logprobs(model, batch)
        with masters():
            return np.stack([seen, copied, token_logprobs(model, batch)])

    before, found = logprobs(), {}
    for update in range(1, max(updates) + 1):
        step()
        if update in updates:
            found[update] = Changes(*(logprobs() - before))
    return found


def noise(model: Any, lengths: Sequence[int]) -> dict[str, Any]:
    """The noise of other batch shapes per length, for `model`, which is already a copy.

    A text is scored first next to a longer one, so that it is padded, and then alone; σ is measured as in a run.
    """
    rng = np.random.default_rng(1)
    vocabulary = model.config.vocab_size
    prompts = [rng.integers(3, vocabulary, PROMPT) for _ in lengths]
    responses = [rng.integers(3, vocabulary, length) for length in lengths]
    padded, apart = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        longer = np.concatenate([response, response[:LONGER]])
        padded.append(_policy_and_value(model, collate([prompt, prompt], [response, longer])))
        apart.append(abs(sum(_policy_and_value(model, collate([prompt], [response]))) - sum(padded[-1])))
    written = [np.ones(length, dtype=bool) for length in lengths]
    stored = tuple(np.array(column, dtype=np.float32) for column in zip(*padded, strict=True))
    trajectories = (prompts, responses, written)
    measured = measure(
        scores_in_updates(model, trajectories), trajectories, stored, max(lengths) + PROMPT, packed=False
    )
    floor = np.sqrt(SIGNAL) * measured.at_least(LEAST["bfloat16"]).sigma(np.array(lengths))
    names = [str(length) for length in lengths]
    ratio = dict(zip(names, map(float, np.array(apart) / floor), strict=True))
    return {
        "noise_over_floor": ratio,
        "largest_noise_over_floor": max(ratio.values()),
        "noise_nats": dict(zip(names, map(float, apart), strict=True)),
        "floor_nats": dict(zip(names, map(float, floor), strict=True)),
        "noise_logprob": measured.logprob,
        "noise_value": measured.value,
    }


@torch.inference_mode()
def _policy_and_value(model: Any, batch: TokenBatch) -> tuple[float, float]:
    """log π(τ) and V(s_1) of the first text."""
    scores = score(model, batch.to(next(model.parameters()).device))
    return float(scores.log_policy[0]), float(scores.value[0])
