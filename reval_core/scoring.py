"""Log-probabilities and values of responses, without ever holding the logits of a whole batch.

The logits are Q-values: Q_θ(s, a) is the logit of token a after s, V_θ(s) = logsumexp_a Q_θ(s, a), and
log π_θ(a|s) = Q_θ(s, a) − V_θ(s). One function serves scoring, learning and the check of the engine. It needs
torch and a transformers causal language model, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Rows = Sequence[np.ndarray]
"""One array of numbers a trajectory, of unequal lengths."""

CHUNK_LOGITS = 1 << 24
"""How many logits exist at once: 64 MiB in float32."""


@dataclass(frozen=True)
class TokenBatch:
    """Prompts with their responses: B rows, padded on the right to L tokens, responses to H tokens."""

    tokens: Tensor
    """[B, L] int64: prompt, then response, then padding."""
    attention: Tensor
    """[B, L] int64: 1 on tokens, 0 on padding."""
    positions: Tensor
    """[B, H] int64: where the state s_h ends, that is, the place before response token a_h."""
    actions: Tensor
    """[B, H] int64: the response tokens a_h; 0 on padding."""
    mask: Tensor
    """[B, H] bool: true on response tokens."""
    written: Tensor
    """[B, H] bool: true on response tokens that the policy wrote itself (the trajectory's loss_mask)."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on a device."""
        return TokenBatch(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})


class Scores(NamedTuple):
    """What a model says of a batch. All are [B, H] float32 and 0 on padding."""

    logprobs: Tensor
    """log π(a_h | s_h); 0 where the policy did not write the token."""
    values: Tensor
    """V(s_h). The first column is V(s_1), the value of the prompt."""
    entropies: Tensor
    """The entropy of π(· | s_h), in nats, without gradient."""

    @property
    def log_policy(self) -> Tensor:
        """log π(τ) [B]: the sum over the response."""
        return self.logprobs.sum(dim=1)

    @property
    def value(self) -> Tensor:
        """V(s_1) [B]."""
        return self.values[:, 0]


def collate(prompts: Rows, responses: Rows, written: Rows | None = None) -> TokenBatch:
    """Pad prompts and responses (int), and whether the policy wrote each response token (bool), into a batch.

    Every prompt and response holds at least one token.
    """
    prompt_lengths = np.array([len(prompt) for prompt in prompts])
    horizon = max(len(response) for response in responses)
    whole = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
    tokens, attention = pad_rows(whole, max(len(row) for row in whole), np.int64)
    actions, mask = pad_rows(responses, horizon, np.int64)
    own = mask if written is None else pad_rows(written, horizon, np.bool_)[0]
    positions = (prompt_lengths[:, None] - 1 + np.arange(horizon)) * mask
    return TokenBatch(
        tokens=torch.from_numpy(tokens),
        attention=torch.from_numpy(attention).long(),
        positions=torch.from_numpy(positions),
        actions=torch.from_numpy(actions),
        mask=torch.from_numpy(mask),
        written=torch.from_numpy(own),
    )


def pad_rows(rows: Rows, width: int, kind: type) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unequal length as an array [B, width] with zeros on the right, and where they stand in it (bool)."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(width) < lengths[:, None]
    padded: np.ndarray = np.zeros(mask.shape, dtype=kind)
    padded[mask] = np.concatenate(rows)
    return padded, mask


def score(model: nn.Module, batch: TokenBatch, temperature: float = 1.0) -> Scores:
    """Score a batch under `model`, which is a transformers causal language model.

    With gradients enabled, the result carries them: logits are made again in the backward pass. At a
    temperature T the logits are divided by T first, as an engine that samples at T does.
    """
    causal: Any = model
    hidden = causal.base_model(input_ids=batch.tokens, attention_mask=batch.attention).last_hidden_state
    rows = torch.arange(len(batch), device=hidden.device).unsqueeze(1).expand_as(batch.positions)
    states = hidden[rows[batch.mask], batch.positions[batch.mask]]  # [N, width], N response tokens
    actions = batch.actions[batch.mask]
    head = causal.get_output_embeddings()
    chunk = max(1, CHUNK_LOGITS // head.weight.shape[0])
    parts = [
        _head(head, states[start : start + chunk], actions[start : start + chunk], temperature)
        for start in range(0, len(actions), chunk)
    ]
    logprobs, values, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return Scores(
        _spread(logprobs, batch.mask) * batch.written,
        _spread(values, batch.mask),
        _spread(entropies, batch.mask),
    )


def micro_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Split rows into groups of like length whose padded size is at most `max_tokens` (or a single row)."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if group and lengths[group[0]] * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _head(head: nn.Module, states: Tensor, actions: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    if torch.is_grad_enabled():
        result: tuple[Tensor, Tensor, Tensor] = checkpoint(
            _logits, head, states, actions, temperature, use_reentrant=False, preserve_rng_state=False
        )
        return result
    return _logits(head, states, actions, temperature)


def _logits(head: nn.Module, states: Tensor, actions: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    logits = head(states).float() / temperature
    values = logits.logsumexp(dim=-1)
    logprobs = logits.gather(1, actions.unsqueeze(1)).squeeze(1) - values
    with torch.no_grad():
        log_policy = logits - values.unsqueeze(1)
        entropies = -(log_policy.exp() * log_policy).sum(dim=-1)
    return logprobs, values, entropies


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """[N] values to their places in [B, H]; 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
