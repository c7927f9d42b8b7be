"""Log-probs and values of responses under a language model, with gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from reval_core.model.scoring import Scores
from reval_core.model.scoring import score as score_batch
from reval_core.model.token_batch import TokenBatch
from reval_core.model.token_batch import collate as collate_rows

__all__ = ["Scores", "TokenBatch", "collate", "score"]


def collate(
    prompts: Iterable[Sequence[int] | Any],
    responses: Iterable[Sequence[int] | Any],
    written: Iterable[Sequence[bool] | Any] | None = None,
    *,
    device: torch.device | str | None = None,
) -> TokenBatch:
    """Put B prompts and their responses of up to H tokens into a padded batch.

    Args:
        prompts: B sequences of token ids (lists, arrays or tensors), without padding, at least one token each.
        responses: B sequences of token ids, likewise. A response that ended by itself includes its end token.
        written: B sequences of bool, as long as the responses: true on tokens that the policy wrote; all if None.
        device: Where the tensors are created; the CPU by default.

    Returns:
        The batch. `batch.mask` [B, H] is true on response tokens, `batch.written` [B, H] on those that the policy
        wrote.

    Raises:
        ValueError: The numbers of rows or the lengths differ, or a row is empty.
    """
    prompt_rows, response_rows = _rows(prompts, np.int64), _rows(responses, np.int64)
    written_rows = None if written is None else _rows(written, np.bool_)
    if len(prompt_rows) != len(response_rows):
        raise ValueError(f"{len(prompt_rows)} prompts and {len(response_rows)} responses: must be as many")
    if not prompt_rows or any(len(row) == 0 for row in (*prompt_rows, *response_rows)):
        raise ValueError("a batch, each prompt and each response must not be empty")
    if written_rows is not None and [len(row) for row in written_rows] != [len(row) for row in response_rows]:
        raise ValueError("written: must have one value per response token")
    batch = collate_rows(prompt_rows, response_rows, written_rows)
    return batch if device is None else batch.to(torch.device(device))


def score(model: nn.Module, batch: TokenBatch, *, temperature: float = 1.0, entropy: bool = False) -> Scores:
    """Compute log-probs and values of a batch, with gradient where it is enabled.

    ReVal reads the logits of a language model as Q-values: V(s) is their log-sum-exp. The logits of a whole
    sequence are never held in memory.

    Args:
        model: A causal language model of transformers. Dropout must be off (`model.eval()`, which does not disable
            gradients), else the scores of a policy and of an equal reference differ.
        batch: From `reval.collate`, on the device of the model.
        temperature: The logits are divided by it first. The residual losses need 1; GRPO needs the temperature of
            sampling.
        entropy: Also compute the entropy of each token's distribution.

    Returns:
        `logprobs` [B, H] in nats and 0 on padding and on tokens that the policy did not write; `values` [B, H], of
        which the first column, `value` [B], is V(s_1); `log_policy` [B], the sum of `logprobs` per response;
        `entropies` [B, H] or None. All at least float32.
    """
    return score_batch(model, batch, temperature, entropy)


def _rows(rows: Iterable[Any], kind: type) -> list[np.ndarray]:
    return [np.asarray(row.cpu() if isinstance(row, torch.Tensor) else row, dtype=kind) for row in rows]
