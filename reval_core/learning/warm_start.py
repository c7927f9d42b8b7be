"""The warm start: supervised fine-tuning on demonstrations, before reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from reval_core.config import WarmStart
from reval_core.learning.learner import Tick
from reval_core.model.scoring import score
from reval_core.model.token_batch import collate
from reval_core.problems import Problem, arithmetic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WARM_START_VERSION = "3"
"""Increment this when a change to the code or the demonstrations changes the resulting weights."""


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: Mapping[str, list[int]],
    settings: WarmStart,
    seed: int,
    tick: Tick = lambda done, total: None,
) -> None:
    """Fit `model` in place to demonstrations of arithmetic problems.

    The loss is the mean of −log π(a_h|s_h) over the tokens of the answers, including the end of sequence.

    Args:
        model: The model to train, in float32.
        tokenizer: Its tokenizer.
        problems: The problems that demonstrations are made of.
        prompts: The prompt tokens of each problem, by its text.
        settings: The config section `model.warm_start`.
        seed: The seed of the demonstrations.
        tick: Called with the steps done and their total.
    """
    rng = np.random.default_rng(seed)
    pairs = [(problem.problem, problem.answer) for problem in problems]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _schedule(step, settings.steps)
        shown = arithmetic.demonstrations(pairs, settings.right, settings.batch, rng)
        answers = tokenizer([answer for _, answer in shown], add_special_tokens=False)["input_ids"]
        batch = collate(
            [np.array(prompts[problem]) for problem, _ in shown],
            [np.array([*answer, tokenizer.eos_token_id]) for answer in answers],
        ).to(model.device)
        loss = -score(model, batch).logprobs.sum() / batch.mask.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tick(step + 1, settings.steps)


def _schedule(step: int, steps: int) -> float:
    """Linear warmup over the first 15% of the steps, then cosine decay to 1/50."""
    warmup = max(1, round(0.15 * steps))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.02, 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))
