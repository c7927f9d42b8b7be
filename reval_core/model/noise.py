"""How far a score may be from the same model's score of the same text in another batch, and draws of nothing else.

log π_ref(τ) and V_ref(s_1) are stored once and used in batches of other shapes, where the same weights give other
last digits. AdamW divides by the gradient's own size, so a draw whose residuals are such digits would move the
policy as far as any other. The standard deviation of a residual that is noise alone is estimated by

    σ(τ) = c · √|τ| + c_V

with |τ| in tokens. c and c_V are measured in each run (`measure`) and recorded with its draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from reval_core.model.scoring import score
from reval_core.model.token_batch import Rows, TokenBatch, collate, micro_batches

SIGNAL = 9.0
"""The least mean of (Δ/σ)² over a draw that is stepped on: residuals of three standard deviations."""

SAMPLE = 16
"""The trajectories that are scored again to measure the noise."""


@dataclass(frozen=True)
class Noise:
    """The standard deviation of what batches change in a score."""

    logprob: float
    """c: of log π(τ), in nats per √token."""
    value: float
    """c_V: of V(s_1), in nats."""

    def at_least(self, other: Noise) -> Noise:
        """The larger of each."""
        return Noise(max(self.logprob, other.logprob), max(self.value, other.value))

    def sigma(self, tokens: np.ndarray) -> np.ndarray:
        """σ [B] of residuals of so many tokens [B]."""
        return self.logprob * np.sqrt(tokens) + self.value


LEAST: Mapping[str, Noise] = {"float32": Noise(2e-6, 1e-5), "bfloat16": Noise(1e-4, 1e-3)}
"""By precision, what is assumed where less is measured: a sample of equal lengths may happen to show none."""


def within_noise(delta: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """[B] bool: the residuals that noise alone may have made."""
    return np.asarray(np.square(delta / sigma) < SIGNAL)


def is_noise(delta: np.ndarray, sigma: np.ndarray) -> bool:
    """Whether a whole draw of residuals [B] may be noise: mean((Δ/σ)²) is below `SIGNAL`. False if it is NaN."""
    return bool(np.mean(np.square(delta / sigma)) < SIGNAL)


def measure(
    model: nn.Module,
    trajectories: tuple[Rows, Rows, Rows],
    stored: tuple[np.ndarray, np.ndarray],
    temperature: float,
    max_tokens: int,
    packed: bool,
) -> Noise:
    """The noise between `stored` log π(τ) and V(s_1), [B] each, and `model`'s scores in batches of other shapes.

    trajectories: prompts, responses, and which tokens the policy wrote; some of those that were scored together.
    They are scored each alone, and then with one another, as training does it: with gradients enabled. The larger
    rms of the two ways counts.
    """
    prompts, responses, _ = trajectories
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    ways = [[row] for row in range(len(lengths))], list(micro_batches(lengths, max_tokens, packed))
    found = Noise(0.0, 0.0)
    for batches in ways:
        differences = []
        for rows in batches:
            batch = collate(*([source[row] for row in rows] for source in trajectories), packed=packed)
            differences.append(_difference(model, batch, [one[rows] for one in stored], temperature))
        c, c_value = np.sqrt(np.mean(np.square(np.concatenate(differences, axis=1), dtype=np.float64), axis=1))
        found = found.at_least(Noise(float(c), float(c_value)))
    return found


def _difference(
    model: nn.Module, batch: TokenBatch, stored: Sequence[np.ndarray], temperature: float
) -> np.ndarray:
    """[2, B]: what a batch changes in log π(τ), by √|τ|, and in V(s_1)."""
    scores = score(model, batch.to(next(model.parameters()).device), temperature)
    tokens = batch.written.sum(dim=1).clamp(min=1).numpy()
    log_policy, value = (one.detach().cpu().numpy() for one in (scores.log_policy, scores.value))
    return np.stack([(log_policy - stored[0]) / np.sqrt(tokens), value - stored[1]])


def spread_sample(lengths: Sequence[int]) -> list[int]:
    """Up to `SAMPLE` rows whose lengths are spread over all that occur."""
    by_length = np.argsort(lengths, kind="stable")
    places = np.unique(np.linspace(0, len(lengths) - 1, SAMPLE).round().astype(int))
    return [int(row) for row in by_length[places]]
