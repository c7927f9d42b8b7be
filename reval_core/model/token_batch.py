"""Batches of trajectories for a model: padded in rows of similar length, or packed end to end in one row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

Rows = Sequence[np.ndarray]
"""One array per trajectory, of unequal lengths."""


@dataclass(frozen=True)
class TokenBatch:
    """B prompts with their responses of up to H tokens, laid out in R rows of L positions.

    Padded, each trajectory is a row (R = B) with padding on the right. No earlier token attends to it, so a causal
    model needs no mask. Packed, all are in one row, end to end; attention does not cross from one to the next.
    """

    tokens: Tensor
    """[R, L] int64: prompts, each followed by its response."""
    positions: Tensor | None
    """[R, L] int64: the position of a token in its own trajectory. None when padded."""
    bounds: Tensor | None
    """[B + 1] int32: the bounds of the trajectories in the row. None when padded."""
    states: Tensor
    """[B, H] int64: the flat index in [R · L] of the last token of state s_h, which precedes response token a_h."""
    actions: Tensor
    """[B, H] int64: the response tokens a_h; 0 on padding."""
    mask: Tensor
    """[B, H] bool: true on response tokens."""
    written: Tensor
    """[B, H] bool: true on response tokens written by the policy (the trajectory's loss_mask)."""
    longest: int
    """The number of tokens of the longest trajectory."""

    def __len__(self) -> int:
        return self.actions.shape[0]

    def to(self, device: torch.device) -> TokenBatch:
        """Copy the batch to a device."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()
        }
        return TokenBatch(**moved)


def collate(prompts: Rows, responses: Rows, written: Rows | None = None, *, packed: bool = False) -> TokenBatch:
    """Build a batch.

    The last token of a response is left out of `tokens`, since nothing is scored after it.

    Args:
        prompts: The prompt tokens (int), at least one per trajectory.
        responses: The response tokens (int), at least one per trajectory.
        written: Whether the policy wrote each response token (bool); all of them if not given.
        packed: Pack the trajectories into one row instead of padding them.
    """
    texts = [np.concatenate((prompt, response[:-1])) for prompt, response in zip(prompts, responses, strict=True)]
    lengths = np.array([len(row) for row in texts])
    actions, mask = pad_rows(responses, max(len(response) for response in responses), np.int64)
    own = mask if written is None else pad_rows(written, mask.shape[1], np.bool_)[0]
    positions = bounds = None
    if packed:
        tokens = np.concatenate(texts)[None]
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])[None])
        bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        starts = np.cumsum(lengths) - lengths
    else:
        tokens, _ = pad_rows(texts, lengths.max(), np.int64)
        starts = np.arange(len(texts)) * tokens.shape[1]
    first = starts + [len(prompt) - 1 for prompt in prompts]
    return TokenBatch(
        tokens=torch.from_numpy(tokens),
        positions=positions,
        bounds=bounds,
        states=torch.from_numpy((first[:, None] + np.arange(mask.shape[1])) * mask),
        actions=torch.from_numpy(actions),
        mask=torch.from_numpy(mask),
        written=torch.from_numpy(own),
        longest=int(lengths.max()),
    )


def pad_rows(rows: Rows, width: int, kind: type) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows with zeros on the right to [B, width]; also returns the mask of the values (bool)."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(width) < lengths[:, None]
    padded: np.ndarray = np.zeros(mask.shape, dtype=kind)
    padded[mask] = np.concatenate(rows)
    return padded, mask


CPU_TOKENS = 2048
"""The maximum tokens per micro-batch on a CPU: with more, activations do not stay in the cache."""


def micro_batch_limit(device: torch.device, max_tokens: int) -> int:
    """The maximum tokens per micro-batch on a device, padding included, where the config allows `max_tokens`."""
    return min(max_tokens, CPU_TOKENS) if device.type == "cpu" else max_tokens


def micro_batches(lengths: Sequence[int], max_tokens: int, packed: bool = False) -> Iterator[list[int]]:
    """Split rows into groups of at most `max_tokens` tokens (or a single row), the longest rows first.

    Padded, the tokens of a group include its padding: its number of rows times its longest row, so rows of similar
    length are grouped. Packed, there is no padding.

    Args:
        lengths: The tokens of each row.
        max_tokens: The maximum tokens per group.
        packed: Whether batches are packed.

    Yields:
        The indices of the rows of each group.
    """
    group: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        size = tokens + lengths[row] if packed else lengths[group[0] if group else row] * (len(group) + 1)
        if group and size > max_tokens:
            yield group
            group, tokens = [], 0
        group.append(row)
        tokens += lengths[row]
    if group:
        yield group
