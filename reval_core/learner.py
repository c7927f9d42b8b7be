"""The learner: K updates a round on drawn trajectories, and the identity of the policy that results.

It holds one model. What the reference says of a trajectory (log π_ref, V_ref) comes with the draw, so no
reference model is loaded, and memory is that of supervised fine-tuning.

A policy's identity is a chain: the next policy's is a digest of this policy's, of every drawn trajectory and of
the learner's settings and versions. So a policy can be named before its weights exist, and made again from a
checkpoint and the recorded draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reval_core import config
from reval_core.errors import RunStopped
from reval_core.files import digest
from reval_core.objectives import Inputs, Outputs, make_objective
from reval_core.scoring import Rows, Scores, collate, micro_batches, pad_rows, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tick = Callable[[int, int], None]
"""Told how many of how many pieces of a long piece of work are done."""

LEARNER_VERSION = "1"
"""Raised when a change of this code changes the weights that come out."""


@dataclass(frozen=True)
class Drawn:
    """The B trajectories of one update. Rows are arrays of a response's or a prompt's length."""

    ids: np.ndarray
    prompts: Rows
    responses: Rows
    written: Rows
    engine_logprobs: Rows
    old_logprobs: Rows
    """log π(a_h|s_h) of the policy that wrote the response, by the trainer."""
    weight: np.ndarray
    """[B] importance weights of the draw."""
    reward: np.ndarray
    advantage: np.ndarray
    log_ref: np.ndarray
    value_ref: np.ndarray
    identity: str
    """The digest of all that the learner is fed."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Update:
    """What one update did. Arrays are [B], in the order of the draw, and as of just before the step."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    clipped: float
    seconds: float
    delta: np.ndarray
    value_term: np.ndarray
    log_ratio: np.ndarray


class Learner:
    """The policy's weights, their optimizer, and the chain that names them."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: config.Reval | config.Tbrm | config.Regression | config.Grpo,
        settings: config.Learner,
        policy: str,
    ) -> None:
        self.model = model
        self.policy: str | None = policy
        """The identity of the weights, or None while updates are under way."""
        self.updates_done = 0
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._settings = settings
        self._objective = make_objective(**objective.model_dump())
        self._identity = [
            LEARNER_VERSION,
            objective.model_dump(),
            settings.model_dump(),
            torch.__version__,
            torch.get_num_threads(),
            str(next(model.parameters()).dtype),
        ]

    def next_policy(self, policy: str, draws: Iterable[Drawn]) -> str:
        """The identity of the policy that these draws make of `policy`."""
        return digest(policy, [drawn.identity for drawn in draws], self._identity)

    def learn(self, draws: Iterable[Drawn], tick: Tick = lambda done, total: None) -> list[Update]:
        """Take one step for each draw, in order; afterwards `policy` names the result.

        `tick` is told how many of how many updates are done. An interruption leaves `policy` None: the weights
        have no name then and must be rebuilt.
        Raises RunStopped, naming trajectories, if a loss or the gradient is not finite.
        """
        assert self.policy is not None, "weights without a name cannot be trained further"
        batches = list(draws)
        after = self.next_policy(self.policy, batches)
        self.policy = None
        updates = []
        for drawn in batches:
            updates.append(self._update(drawn))
            tick(len(updates), len(batches))
        self.policy = after
        return updates

    def _update(self, drawn: Drawn) -> Update:
        started = time.perf_counter()
        lr = self._schedule()
        self.optimizer.zero_grad(set_to_none=True)
        outputs = [(rows, self._backward(drawn, rows)) for rows in self._micro_batches(drawn)]
        loss, delta, value_term, log_ratio, clipped = _gathered(outputs)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.grad_clip)
        if not torch.isfinite(grad_norm):
            largest = drawn.ids[np.argsort(-np.abs(delta))[:5]].tolist()
            raise RunStopped(f"the gradient is not finite; the largest residuals are of trajectories {largest}")
        self.optimizer.step()
        self.updates_done += 1
        return Update(
            loss=float(np.mean(loss * drawn.weight)),
            grad_norm=float(grad_norm),
            lr=lr,
            tokens=sum(len(response) for response in drawn.responses),
            clipped=float(np.mean(clipped)),
            seconds=time.perf_counter() - started,
            delta=delta,
            value_term=value_term,
            log_ratio=log_ratio,
        )

    def _micro_batches(self, drawn: Drawn) -> list[list[int]]:
        lengths = [len(p) + len(r) for p, r in zip(drawn.prompts, drawn.responses, strict=True)]
        return list(micro_batches(lengths, self._settings.micro_batch_tokens))

    def _backward(self, drawn: Drawn, rows: list[int]) -> Outputs:
        """Add the gradient of these rows' part of the loss, mean_τ weight(τ) · loss(τ)."""
        device = next(self.model.parameters()).device
        batch = collate(
            *([source[row] for row in rows] for source in (drawn.prompts, drawn.responses, drawn.written))
        )
        outputs = self._objective(_inputs(drawn, rows, score(self.model, batch.to(device))))
        if not torch.isfinite(outputs.loss).all():
            bad = drawn.ids[rows][~torch.isfinite(outputs.loss).cpu().numpy()].tolist()
            raise RunStopped(f"the loss is not finite for trajectories {bad[:5]}; look at them with reval sql")
        weight = torch.from_numpy(drawn.weight[rows]).to(device)
        ((outputs.loss * weight).sum() / len(drawn)).backward()
        return Outputs(*(part.detach() for part in outputs))

    def _schedule(self) -> float:
        """Set and return the learning rate of the coming update: a linear warm-up, then constant."""
        warmup = self._settings.warmup_updates
        lr = self._settings.lr * min(1.0, (self.updates_done + 1) / (warmup + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr


def _inputs(drawn: Drawn, rows: list[int], scores: Scores) -> Inputs:
    device, horizon = scores.logprobs.device, scores.logprobs.shape[1]

    def padded(source: Rows) -> Tensor:
        return torch.from_numpy(pad_rows([source[row] for row in rows], horizon, np.float32)[0]).to(device)

    def column(source: np.ndarray) -> Tensor:
        return torch.from_numpy(source[rows]).to(device)

    return Inputs(
        logprobs=scores.logprobs,
        mask=padded(drawn.written).bool(),
        value=scores.value,
        log_ref=column(drawn.log_ref),
        value_ref=column(drawn.value_ref),
        reward=column(drawn.reward),
        advantage=column(drawn.advantage),
        old_logprobs=padded(drawn.old_logprobs),
        engine_logprobs=padded(drawn.engine_logprobs),
    )


def _gathered(outputs: list[tuple[list[int], Outputs]]) -> list[np.ndarray]:
    """The outputs of the micro-batches as one array each, in the order of the draw."""
    order = np.argsort(np.concatenate([rows for rows, _ in outputs]))
    return [torch.cat(parts).cpu().numpy()[order] for parts in zip(*(out for _, out in outputs), strict=True)]
