"""The GPU's numerics: the LM head, log-probs, the visibility of updates in the copy, and noise.

Each check takes a `ModelSource` and returns its metrics by name; `LIMITS` has their limits.
Needs only torch, transformers and numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_model import SEED, ModelSource, Shape
from benchmarks.learner_cases import batch_of, inputs, scores_in_updates
from benchmarks.record import Limits
from benchmarks.workloads import Work, texts
from reval_core.model.layers import as_loaded
from reval_core.model.lm_head import Head, token_scores
from reval_core.model.low_precision import low_precision
from reval_core.model.noise import LEAST, SIGNAL, Noise, is_noise, measure, spread_sample
from reval_core.model.scoring import score
from reval_core.model.token_batch import micro_batches
from reval_core.objectives import grpo

UPDATES = (1, 4, 16)
DRAWS, DRAW = 6, 8
"""The number of pure-noise draws, and the trajectories of each."""
REWARD, BETA = 0.125, 0.1
"""The true signal: centred rewards of ±1/8. The paper's β, 0.002 and 0.02, give larger ones."""


def head(source: ModelSource) -> dict[str, float]:
    """The head in both precisions against a float32 log-softmax of the same states, forward and backward.

    The maximum difference of log-probs and values in nats, and of gradients relative to their norm.
    """
    found = {}
    (count,) = source.shape.lengths(2048)
    for dtype in (torch.float32, torch.bfloat16):
        states, weight, actions = _head_inputs(source, count, dtype)
        onto = torch.randn(2, count, device=source.device)  # a different slope for each log π and V
        wanted = _whole_logits(states, weight, actions)
        slopes = torch.autograd.grad((wanted * onto).sum(), (states, weight))
        scores = token_scores(Head(weight), states, actions)
        given = torch.stack([scores.logprobs, scores.values])
        names = ("states", "weight")
        name = str(dtype).removeprefix("torch.")
        found[f"{name}_nats"] = float((given - wanted).detach().abs().max())
        for part, one, other in zip(
            names, torch.autograd.grad((given * onto).sum(), (states, weight)), slopes, strict=True
        ):
            found[f"{name}_gradient_of_{part}"] = float((one.float() - other.float()).norm() / other.float().norm())
    return found


def _head_inputs(source: ModelSource, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    shape, device = source.shape, source.device
    torch.manual_seed(0)
    states = torch.randn(count, shape.width, device=device, dtype=dtype)
    weight = 0.06 * torch.randn(shape.vocabulary, shape.width, device=device, dtype=dtype)
    return (
        states.requires_grad_(),
        weight.requires_grad_(),
        torch.randint(shape.vocabulary, (count,), device=device),
    )


def _whole_logits(states: Tensor, weight: Tensor, actions: Tensor) -> Tensor:
    """log π of the actions and V, [2, N], from all logits at once."""
    logits = states.float() @ weight.float().T
    values = logits.logsumexp(dim=1)
    return torch.stack([logits.gather(1, actions[:, None]).squeeze(1) - values, values])


def rounding(source: ModelSource) -> dict[str, float]:
    """The number of weights that a CPU rounds differently: in three tensors, one the largest, and in parts."""
    masters = source.weights.masters
    names = sorted(masters, key=lambda name: -masters[name].numel())
    differing = 0
    for name in (names[0], names[len(names) // 2], names[-1]):
        flat = masters[name].detach().flatten()
        for start in (0, len(flat) // 3):
            here = low_precision(flat[start:], SEED, name, start)
            differing += int((here.cpu() != low_precision(flat[start:].cpu(), SEED, name, start)).sum())
    return {"differing": float(differing)}


def scoring(source: ModelSource) -> dict[str, float]:
    """The copy's log-probs against the float32 masters', and of the same texts padded, paired, alone and packed.

    In nats: the rms of log π per token against float32, and the largest change of log π(τ) + V(s_1) per √tokens.
    `eager_…` is without compiled layers.
    """
    lengths = source.shape.lengths(64, 256, 1024, 2048)
    work = texts(lengths, source.shape.vocabulary, prompt=4)
    every = list(range(len(lengths)))
    padded, sums = _scored(source, work, every)
    with source.masters():
        exact, _ = _scored(source, work, every)
    with source.packed():
        _, packed = _scored(source, work, every, packed=True)
    with as_loaded(source.model):
        eager, _ = _scored(source, work, every)
        eager_changes = _changes_by_batch(source, work, lengths)
    return {
        "copy_to_float32": _rms(padded - exact),
        "eager_to_float32": _rms(eager - exact),
        "packed_to_padded": _by_root(packed - sums, lengths),
        **_changes_by_batch(source, work, lengths),
        **{f"eager_{name}": change for name, change in eager_changes.items()},
    }


def _changes_by_batch(source: ModelSource, work: Work, lengths: Sequence[int]) -> dict[str, float]:
    """The change if texts are scored alone or in pairs instead of all together."""
    every = list(range(len(lengths)))
    _, together = _scored(source, work, every)
    groups = {"alone": [[row] for row in every], "pairs": [every[:2], every[2:]]}
    return {
        f"{name}_to_padded": _by_root(
            torch.cat([_scored(source, work, rows)[1] for rows in way]) - together, lengths
        )
        for name, way in groups.items()
    }


@torch.no_grad()
def _scored(source: ModelSource, work: Work, rows: Sequence[int], packed: bool = False) -> tuple[Tensor, Tensor]:
    """log π of every response token, one after the other, and log π(τ) + V(s_1) of every text."""
    batch = batch_of(work, rows, packed)
    scores = score(source.model, batch.to(source.device))
    return scores.logprobs[batch.mask.to(source.device)].double(), (scores.log_policy + scores.value).double()


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def _by_root(difference: Tensor, lengths: Sequence[int]) -> float:
    return float((difference.abs().cpu() / torch.tensor(lengths).sqrt()).max())


def gap(source: ModelSource) -> dict[str, float]:
    """The visibility of 16 updates at lr 1e-6 in the copy, and its difference from the weights of an engine.

    `seen_…`: the slope of its change of log π on the masters'. `gap_16`: the mean difference per token between the
    learner and its rounded masters, with the same layers and the same batch. `eager_gap_…`: with
    each text alone and layers that are not compiled; before the updates it is bfloat16's arithmetic.
    """
    work = texts(source.shape.lengths(*[272] * 8), source.shape.vocabulary, prompt=4)
    rows, optimizer = range(8), source.optimizer(source.shape.small_lr)
    before, before_exact = _copy_and_masters(source, work)
    found = {"eager_gap_0": float((_alone_and_eager(source, work) - before).abs().mean())}
    for update in range(1, UPDATES[-1] + 1):
        batch = batch_of(work, rows).to(source.device)
        given = inputs(score(source.model, batch), batch, work, rows)
        grpo(given, clip_low=0.2, clip_high=0.28, importance_cap=2.0).loss.mean().backward()
        source.step(optimizer)
        if update in UPDATES:
            now, exact = _copy_and_masters(source, work)
            change, true = now - before, exact - before_exact
            slope = float((change * true).sum() / true.square().sum())
            found[f"seen_{update}"] = slope
            found[f"residual_{update}"] = _rms(change - slope * true)
            found[f"change_{update}"] = _rms(true)
    found["eager_gap_16"] = float((_alone_and_eager(source, work) - now).abs().mean())
    found["eager_gap_growth"] = found["eager_gap_16"] - found["eager_gap_0"]
    source.publish()
    found["gap_16"] = float((_scored(source, work, rows)[0] - now).abs().mean())
    found["largest_seen"] = max(found[f"seen_{update}"] for update in UPDATES)
    return found


def _copy_and_masters(source: ModelSource, work: Work) -> tuple[Tensor, Tensor]:
    rows = range(len(work.prompts))
    copy, _ = _scored(source, work, rows)
    with source.masters():
        masters, _ = _scored(source, work, rows)
    return copy, masters


def _alone_and_eager(source: ModelSource, work: Work) -> Tensor:
    """log π of the copy, each text alone, without compiled layers."""
    with as_loaded(source.model):
        return torch.cat([_scored(source, work, [row])[0] for row in range(len(work.prompts))])


def draws(source: ModelSource) -> dict[str, float]:
    """Draws whose residuals are pure noise, and one with a true signal, under the learner's test.

    As there, mean((Δ/σ)²) is compared with 9, with σ measured on 16 trajectories; returned as their ratio.
    """
    work = texts(_many_lengths(source.shape), source.shape.vocabulary, prompt=4)
    reference = _reference(source, work)
    tokens = np.array([len(response) for response in work.responses])
    noise = _measured(source, work, reference)
    rng = np.random.default_rng(0)
    over, stepped = [], 0
    for number in range(DRAWS):
        rows = rng.choice(len(tokens), DRAW, replace=False)
        delta = _zero_reward(source, work, rows, reference, at_once=(1, 2, 4, 8)[number % 4])
        over.append(float(np.mean(np.square(delta / noise.sigma(tokens[rows])))) / SIGNAL)
        stepped += not is_noise(delta, noise.sigma(tokens[rows]))
    longest = int(np.argmin(np.abs(tokens - source.shape.lengths(1000)[0])))
    rows = np.full(DRAW, longest)
    signal = np.array([REWARD, -REWARD] * (DRAW // 2)) / BETA
    delta = _zero_reward(source, work, rows, reference, at_once=4) - signal
    return {
        "noise_over_floor": max(over),
        "noise_draws_stepped": float(stepped),
        "signal_over_floor": float(np.mean(np.square(delta / noise.sigma(tokens[rows])))) / SIGNAL,
        "floor_nats_at_1000": float(np.sqrt(SIGNAL) * noise.sigma(np.array(1000.0))),
        "noise_logprob": noise.logprob,
        "noise_value": noise.value,
    }


def _many_lengths(shape: Shape) -> list[int]:
    return shape.lengths(*map(int, np.linspace(64, 2000, 24)), 1000)


def _in_groups(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _reference(source: ModelSource, work: Work) -> tuple[np.ndarray, np.ndarray]:
    """log π_ref and V_ref [B] as the scoring stage stores them: in micro-batches of similar length, no gradient."""
    lengths = [len(one) + len(two) for one, two in zip(work.prompts, work.responses, strict=True)]
    found = np.zeros((2, len(lengths)), dtype=np.float32)
    with torch.no_grad():
        for rows in micro_batches(lengths, source.shape.lengths(16_384)[0]):
            found[:, rows] = _policy_and_value(source, work, rows)
    return found[0], found[1]


def _policy_and_value(source: ModelSource, work: Work, rows: Sequence[int]) -> np.ndarray:
    scores = score(source.model, batch_of(work, rows).to(source.device))
    return torch.stack([scores.log_policy, scores.value]).detach().cpu().numpy()


def _measured(source: ModelSource, work: Work, stored: tuple[np.ndarray, np.ndarray]) -> Noise:
    rows = spread_sample([len(response) for response in work.responses])
    prompts, responses = ([source[row] for row in rows] for source in (work.prompts, work.responses))
    written = [np.ones(len(response), dtype=bool) for response in responses]
    most = source.shape.lengths(16_384)[0]
    trajectories, sample = (prompts, responses, written), (stored[0][rows], stored[1][rows])
    scores = scores_in_updates(source.model, trajectories)
    return measure(scores, trajectories, sample, most, packed=False).at_least(LEAST["bfloat16"])


def _zero_reward(
    source: ModelSource, work: Work, rows: Sequence[int], reference: tuple[np.ndarray, np.ndarray], at_once: int
) -> np.ndarray:
    """Δ [B] of a draw without reward, computed with gradients enabled in batches of this many rows."""
    found = np.concatenate([_policy_and_value(source, work, group) for group in _in_groups(rows, at_once)], axis=1)
    difference: np.ndarray = (found - np.stack([one[rows] for one in reference])).sum(axis=0)
    return difference


Check = Callable[[ModelSource], dict[str, Any]]

CHECKS: dict[str, Check] = {"head": head, "rounding": rounding, "scoring": scoring, "draws": draws, "gap": gap}

LIMITS: dict[str, Limits] = {
    "head": {
        "float32_nats": ("at most", 1e-4),
        "float32_gradient_of_states": ("at most", 1e-4),
        "float32_gradient_of_weight": ("at most", 1e-4),
        "bfloat16_nats": ("at most", 1e-3),
        "bfloat16_gradient_of_states": ("at most", 1e-2),
        "bfloat16_gradient_of_weight": ("at most", 1e-2),
    },
    "rounding": {"differing": ("at most", 0.0)},
    "scoring": {
        "copy_to_float32": ("at most", 0.02),
        "packed_to_padded": ("at most", 0.02),
        "alone_to_padded": ("at most", 0.02),
        "pairs_to_padded": ("at most", 0.02),
    },
    "draws": {
        "noise_over_floor": ("at most", 1.0),
        "noise_draws_stepped": ("at most", 0.0),
        "signal_over_floor": ("at least", 1.0),
    },
    "gap": {
        **{f"seen_{update}": ("at least", 0.8) for update in UPDATES},
        "largest_seen": ("at most", 1.2),
        "gap_16": ("at most", 0.005),
        "eager_gap_growth": ("at most", 0.005),
    },
}
