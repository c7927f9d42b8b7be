"""Scoring in all processes of a run: each scores its share of the micro-batches, the first one gets all scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reval_core import launch
from reval_core.learning import processes
from reval_core.model.scoring import Scores
from reval_core.model.token_batch import Rows, TokenBatch, collate

Texts = tuple[Rows, Rows, Rows]
"""Prompts, responses, and masks of the tokens written by the policy, one array per trajectory."""

Groups = Sequence[Sequence[int]]
"""The rows of each micro-batch."""


@dataclass(frozen=True)
class Scoring:
    """How trajectories are scored."""

    temperature: float
    packed: bool = False
    """Whether batches are packed."""
    entropy: bool = False
    """Whether entropies are computed."""
    as_in_updates: bool = False
    """Whether the forward pass is that of updates, with gradients enabled."""


class Scored(NamedTuple):
    """A micro-batch and its scores, on the CPU."""

    rows: Sequence[int]
    batch: TokenBatch
    scores: Scores


def shared_scores(
    scorer: nn.Module,
    device: torch.device,
    texts: Texts,
    groups: Groups,
    scoring: Scoring,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scored]:
    """Score micro-batches. Collective: every process calls it with the same texts and groups.

    Args:
        scorer: The model as a `Scorer`.
        device: Its device.
        texts: The trajectories.
        groups: The rows of each micro-batch.
        scoring: How they are scored.
        tick: Called with the trajectories done and their total.

    Returns:
        All micro-batches in order in the first process; nothing in the others.
    """
    count, rank, found, done = launch.count(), launch.rank(), [], 0
    for first in range(0, len(groups), count):
        wave = groups[first : first + count]
        # A process without a micro-batch computes another's, since a sharded model needs every process.
        batch = _batch(texts, wave[min(rank, len(wave) - 1)], scoring)
        scores = _scores(scorer, device, batch, scoring)
        if rank == 0:
            found += [Scored(wave[0], batch, scores), *_from_others(texts, wave, scoring)]
        elif rank < len(wave):
            processes.send(torch.stack([one for one in scores if one is not None]))
        done += sum(map(len, wave))
        tick(done, sum(map(len, groups)))
    return found


def flattened(texts: Texts, groups: Groups) -> tuple[list[int], Tensor]:
    """Texts and groups as one int32 tensor [n], for the other processes, and the sizes that `restored` needs."""
    prompts, responses, _ = texts
    lengths = [[len(row) for row in rows] for rows in (prompts, responses)]
    numbers = [np.array(part) for part in (*lengths, [len(group) for group in groups])]
    flat = np.concatenate([*numbers, *map(np.array, groups), *(row for rows in texts for row in rows)])
    return [len(prompts), len(groups), len(flat)], torch.from_numpy(flat.astype(np.int32))


def restored(sizes: Sequence[int], flat: Tensor) -> tuple[Texts, Groups]:
    """The texts and groups in a tensor that `flattened` made."""
    rows, groups, _ = sizes
    numbers = flat.numpy()
    prompts, responses, of_groups, left = np.split(numbers, np.cumsum([rows, rows, groups]))
    lengths = [*of_groups, *prompts, *responses, *responses]
    parts = np.split(left, np.cumsum(lengths)[:-1])
    chosen, texts = parts[:groups], parts[groups:]
    written = [row.astype(bool) for row in texts[2 * rows :]]
    return (texts[:rows], texts[rows : 2 * rows], written), [group.tolist() for group in chosen]


def _batch(texts: Texts, rows: Sequence[int], scoring: Scoring) -> TokenBatch:
    return collate(*([source[row] for row in rows] for source in texts), packed=scoring.packed)


def _scores(scorer: nn.Module, device: torch.device, batch: TokenBatch, scoring: Scoring) -> Scores:
    with torch.set_grad_enabled(scoring.as_in_updates):
        scores: Scores = scorer(batch.to(device), scoring.temperature, scoring.entropy)
    return Scores(*(None if one is None else one.detach().cpu() for one in scores))  # type: ignore[arg-type]


def _from_others(texts: Texts, wave: Groups, scoring: Scoring) -> Iterator[Scored]:
    """The micro-batches of this wave that other processes have scored."""
    for rank, rows in enumerate(wave[1:], start=1):
        batch = _batch(texts, rows, scoring)
        received = processes.take(torch.empty(2 + scoring.entropy, *batch.mask.shape), rank)
        yield Scored(rows, batch, Scores(received[0], received[1], received[2] if scoring.entropy else None))
