"""The learner: K updates a round on drawn trajectories, and the identity of the policy that results.

It holds one model. What the reference says of a trajectory (log π_ref, V_ref) comes with the draw, so no
reference model is loaded, and memory is that of supervised fine-tuning.

A policy's identity is a chain: the next policy's is a digest of this policy's, of every drawn trajectory and of
the learner's settings and versions. So a policy can be named before its weights exist, and made again from a
checkpoint and the recorded draws.

Under `accelerate launch` every process holds a learner and calls `learn` with the same draws. Each takes its share
of the micro-batches, gradients are averaged before the step, and every process returns the whole update.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import accelerate
import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from reval_core import config
from reval_core.batches import Rows, collate, micro_batches, pad_rows
from reval_core.files import digest
from reval_core.guards import Guard
from reval_core.models import checkpointed_layers, model_identity
from reval_core.objectives import Inputs, Outputs, make_objective, objective_identity
from reval_core.objectives.residuals import NOISE
from reval_core.scoring import Scorer, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tick = Callable[[int, int], None]
"""Told how many of how many pieces of a long piece of work are done."""

Part = tuple[list[int], dict[str, np.ndarray]]
"""Rows of a draw, and what the objective made of them by name, an array each."""

LEARNER_VERSION = "2"
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
    """log π(a_h|s_h) of the policy that wrote the response, by the trainer; like the engine's, NaN if not known."""
    truncated: np.ndarray
    """[B] bool: the response was cut at the length limit."""
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

    @cached_property
    def mean_tokens(self) -> float:
        """The tokens that the policy wrote, a trajectory."""
        return sum(int(one.sum()) for one in self.written) / len(self)


@dataclass(frozen=True)
class Update:
    """What one update did. Arrays are [B], in the order of the draw, and as of just before the step."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    delta: np.ndarray
    value_term: np.ndarray
    log_ratio: np.ndarray
    metrics: dict[str, float]
    """The objective's own, as means over the trajectories."""


class Learner:
    """The policy's weights, their optimizer, and the chain that names them."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: config.Objective,
        settings: config.Learner,
        policy: str,
        temperature: float = 1.0,
    ) -> None:
        self.model = model
        self.policy: str | None = policy
        """The identity of the weights, or None while updates are under way."""
        self.updates_done = 0
        self.guard = Guard(settings.spike_limit)
        self._settings = settings
        self._temperature = temperature
        self._objective = make_objective(**objective.model_dump())
        half = settings.precision == "bfloat16" or next(model.parameters()).dtype != torch.float32
        self._noise = settings.noise or NOISE["bfloat16" if half else "float32"]
        self._accelerator = accelerate.Accelerator(
            # Without it, processes that find no GPU would each train alone.
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if settings.precision == "bfloat16" else "no",
        )
        self._scorer, self.optimizer = self._accelerator.prepare(
            Scorer(model),
            torch.optim.AdamW(
                [parameter for parameter in model.parameters() if parameter.requires_grad],
                lr=settings.lr,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                fused=True,
            ),
        )
        self._identity = [
            LEARNER_VERSION,
            objective_identity(**objective.model_dump()),
            settings.model_dump(),
            temperature,
            model_identity(model),
            torch.__version__,
            torch.get_num_threads(),
            self._accelerator.device.type,
            self.processes,
        ]

    @classmethod
    def of(cls, model: PreTrainedModel, run: config.Config, policy: str) -> Learner:
        """A learner with a run's settings."""
        return cls(model, run.objective, run.learner, policy, run.scoring_temperature)

    def next_policy(self, policy: str, draws: Iterable[Drawn]) -> str:
        """The identity of the policy that these draws make of `policy`."""
        return digest(policy, [drawn.identity for drawn in draws], self._identity)

    def learn(self, draws: Iterable[Drawn], tick: Tick = lambda done, total: None) -> list[Update]:
        """Take one step for each draw, in order; afterwards `policy` names the result.

        `tick` is told how many of how many updates are done. An interruption leaves `policy` None: the weights
        have no name then and must be rebuilt.
        Raises RunStopped, naming trajectories, if a loss or the gradient is not finite or is a spike.
        """
        assert self.policy is not None, "weights without a name cannot be trained further"
        batches = list(draws)
        after = self.next_policy(self.policy, batches)
        self.policy = None
        updates = []
        with checkpointed_layers(self.model) if self._settings.gradient_checkpointing else nullcontext():
            for drawn in batches:
                updates.append(self._update(drawn))
                tick(len(updates), len(batches))
        self.optimizer.zero_grad(set_to_none=True)  # no memory for gradients while rollouts are generated
        self.policy = after
        return updates

    def _update(self, drawn: Drawn) -> Update:
        started = time.perf_counter()
        lr = learning_rate(self._settings, self.updates_done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        found = self._whole(self._gradients(drawn))
        norm = float(self._accelerator.clip_grad_norm_(self._scorer.parameters(), self._settings.grad_clip))
        loss = found.pop("loss") * drawn.weight
        self.guard.check(drawn.ids, loss, norm)
        self.optimizer.step()
        self.updates_done += 1
        return Update(
            loss=float(np.mean(loss)),
            grad_norm=norm,
            lr=lr,
            tokens=sum(len(response) for response in drawn.responses),
            seconds=time.perf_counter() - started,
            delta=found.pop("delta"),
            value_term=found.pop("value_term"),
            log_ratio=found.pop("log_ratio"),
            metrics={name: float(np.mean(values)) for name, values in found.items()},
        )

    @property
    def processes(self) -> int:
        """How many processes learn together."""
        count: int = self._accelerator.num_processes
        return count

    def state(self) -> dict[str, Tensor]:
        """The model's weights by name, whole, also where processes hold a part each. Every process must ask."""
        state = self._accelerator.get_state_dict(self._scorer)
        return {name.removeprefix("model."): tensor for name, tensor in state.items()}

    def autocast(self) -> AbstractContextManager[None]:
        """The precision that the learner computes in, for whoever scores with its model outside of an update."""
        return self._accelerator.autocast()

    def _gradients(self, drawn: Drawn) -> list[Part]:
        """Add up the gradients of this process's micro-batches; the last one averages them over the processes."""
        parts = []
        mine = self._share(drawn)
        for number, rows in enumerate(mine, start=1):
            with nullcontext() if number == len(mine) else self._accelerator.no_sync(self._scorer):
                if rows:
                    parts.append((rows, self._backward(drawn, rows, share=1.0)))
                else:  # this process has one micro-batch less, and the others wait for it
                    self._backward(drawn, [0], share=0.0)
        return parts

    def _share(self, drawn: Drawn) -> list[list[int]]:
        """The micro-batches of this process; as many as every other has, for which one may be empty."""
        lengths = [
            len(prompt) + len(response) for prompt, response in zip(drawn.prompts, drawn.responses, strict=True)
        ]
        groups = list(micro_batches(lengths, self._settings.micro_batch_tokens, self._settings.packed))
        processes = self._accelerator.num_processes
        groups += [[]] * (-len(groups) % processes)
        return groups[self._accelerator.process_index :: processes]

    def _backward(self, drawn: Drawn, rows: list[int], share: float) -> dict[str, np.ndarray]:
        """Add the gradient of `share` of these rows' part of the loss, mean_τ weight(τ) · loss(τ)."""
        device = self._accelerator.device
        sources = (drawn.prompts, drawn.responses, drawn.written)
        batch = collate(*([source[row] for row in rows] for source in sources), packed=self._settings.packed)
        scores = self._scorer(batch.to(device), self._temperature)
        outputs = self._objective(self._inputs(drawn, rows, scores))
        weight = torch.from_numpy(drawn.weight[rows]).to(device)
        # Gradients are averaged over the processes, and the loss is a mean over the draw.
        share *= self._accelerator.num_processes / len(drawn)
        # Not accelerator.backward: it divides by what the launcher was told of gradient accumulation.
        ((outputs.loss * weight).sum() * share).backward()
        return {name: column.detach().cpu().numpy() for name, column in _columns(outputs).items()}

    def _inputs(self, drawn: Drawn, rows: list[int], scores: Scores) -> Inputs:
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
            truncated=column(drawn.truncated),
            noise=self._noise,
            mean_tokens=drawn.mean_tokens,
        )

    def _whole(self, parts: list[Part]) -> dict[str, np.ndarray]:
        """The outputs of all micro-batches of all processes, [B] each, in the order of the draw."""
        if self._accelerator.num_processes > 1:
            parts = gather_object(parts)
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        return {name: np.concatenate([columns[name] for _, columns in parts])[order] for name in parts[0][1]}


def learning_rate(settings: config.Learner, updates_done: int) -> float:
    """The learning rate of the next update: a linear rise, then constant, or a line or cosine to lr_end · lr."""
    rise = min(1.0, (updates_done + 1) / (settings.warmup_updates + 1))
    if settings.decay_updates is None:
        return settings.lr * rise
    way = min(1.0, max(0, updates_done - settings.warmup_updates) / settings.decay_updates)
    left = 1 - way if settings.schedule == "linear" else (1 + math.cos(math.pi * way)) / 2
    return settings.lr * rise * (settings.lr_end + (1 - settings.lr_end) * left)


def _columns(outputs: Outputs) -> dict[str, Tensor]:
    known = {name: getattr(outputs, name) for name in ("loss", "delta", "value_term", "log_ratio")}
    return known | outputs.metrics
