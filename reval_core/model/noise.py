"""The numerical noise of scores across batch shapes, and the test for draws whose residuals are only noise.

log π_ref(τ) and V_ref(s_1) are stored once and used in batches of other shapes, where the same weights give other
last digits. AdamW normalises by the gradient's magnitude, so a draw whose residuals are only such differences would
move the policy as far as any other. The standard deviation of a residual that is only noise is estimated as

    σ(τ) = c · √|τ| + c_V

with |τ| in tokens. c and c_V are measured in each run (`measure`) and recorded with its draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reval_core.model.scoring import Scores
from reval_core.model.token_batch import Rows, micro_batches

SIGNAL = 9.0
"""The minimum mean of (Δ/σ)² over a draw for an optimizer step: residuals of three standard deviations."""

SAMPLE = 16
"""The number of trajectories that are rescored to measure the noise."""


@dataclass(frozen=True)
class Noise:
    """The standard deviation of scores of the same text in different batches."""

    logprob: float
    """c, for log π(τ), in nats per √token."""
    value: float
    """c_V, for V(s_1), in nats."""

    def at_least(self, other: Noise) -> Noise:
        """The larger value of each."""
        return Noise(max(self.logprob, other.logprob), max(self.value, other.value))

    def sigma(self, tokens: np.ndarray) -> np.ndarray:
        """σ [B] of residuals by the number of tokens [B]."""
        return self.logprob * np.sqrt(tokens) + self.value


LEAST: Mapping[str, Noise] = {"float32": Noise(2e-6, 1e-5), "bfloat16": Noise(1e-4, 1e-3)}
"""The minimum by precision: a sample of equal lengths may happen to show no noise."""


def within_noise(delta: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """[B] bool: the residuals that may be only noise."""
    return np.asarray(np.square(delta / sigma) < SIGNAL)


def is_noise(delta: np.ndarray, sigma: np.ndarray) -> bool:
    """Whether a whole draw of residuals [B] may be noise: mean((Δ/σ)²) is below `SIGNAL`. False if it is NaN."""
    return bool(np.mean(np.square(delta / sigma)) < SIGNAL)


def measure(
    scores: Callable[[Sequence[list[int]]], Iterable[Scores]],
    trajectories: tuple[Rows, Rows, Rows],
    stored: tuple[np.ndarray, np.ndarray],
    max_tokens: int,
    packed: bool,
) -> Noise:
    """Measure the noise between stored scores and scores in batches of other shapes.

    The trajectories are scored one by one, and then together, as in training: with gradients enabled. The larger
    rms difference of the two is used.

    Args:
        scores: Scores micro-batches with these rows as an update does, by the model and at the temperature of the
            stored scores.
        trajectories: Prompts, responses, and masks of the tokens written by the policy: a sample of trajectories
            that were scored together.
        stored: log π(τ) and V(s_1), [B] each.
        max_tokens: The maximum tokens per micro-batch.
        packed: Whether batches are packed.
    """
    prompts, responses, written = trajectories
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    one_by_one = [[row] for row in range(len(lengths))]
    together = list(micro_batches(lengths, max_tokens, packed))
    noise = Noise(0.0, 0.0)
    for batches in (one_by_one, together):
        tokens = [np.array([max(1, written[row].sum()) for row in rows]) for rows in batches]
        differences = [
            _difference(found, [one[rows] for one in stored], of_rows)
            for rows, of_rows, found in zip(batches, tokens, scores(batches), strict=True)
        ]
        c, c_value = np.sqrt(np.mean(np.square(np.concatenate(differences, axis=1), dtype=np.float64), axis=1))
        noise = noise.at_least(Noise(float(c), float(c_value)))
    return noise


def _difference(scores: Scores, stored: Sequence[np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """[2, B]: the differences of a batch from the stored scores, in log π(τ) / √|τ| and in V(s_1)."""
    log_policy, value = (tensor.detach().cpu().numpy() for tensor in (scores.log_policy, scores.value))
    return np.stack([(log_policy - stored[0]) / np.sqrt(tokens), value - stored[1]])


def spread_sample(lengths: Sequence[int]) -> list[int]:
    """Up to `SAMPLE` rows whose lengths are spread over the whole range."""
    by_length = np.argsort(lengths, kind="stable")
    ranks = np.unique(np.linspace(0, len(lengths) - 1, SAMPLE).round().astype(int))
    return [int(row) for row in by_length[ranks]]
