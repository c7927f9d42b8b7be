"""The learner: K updates per round on drawn trajectories, and the identity of the resulting policy.

It holds one model. The scores under the reference (log π_ref, V_ref) come with the draw, so no reference model is
loaded, and memory is that of supervised fine-tuning. In bfloat16 the model is a copy of float32 weights that only
the optimizer holds (`reval_core.model.low_precision`).

The identities of policies form a chain: the identity of the next policy is a digest of the identity of this one, of
every drawn trajectory and of the learner's settings and versions. So a policy can be named before its weights
exist, and reconstructed from a checkpoint and the recorded draws.

In several processes (`accelerate launch`, torchrun) every process holds a learner, or a shard of it, and calls
`learn` with the same draws. Each takes its share of the micro-batches, gradients are summed before the step, and
every process returns the whole update.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reval_core import config, launch
from reval_core.atomic_files import digest
from reval_core.learning import processes
from reval_core.learning.deterministic import announce_deterministic, deterministic_kernels
from reval_core.learning.guards import Guard
from reval_core.learning.precision import settled_learner
from reval_core.learning.snapshot import Snapshot
from reval_core.learning.trained_weights import is_sharded, make_weights
from reval_core.learning.update import Drawn, Update
from reval_core.model.layers import checkpointed_layers
from reval_core.model.loading import model_identity, policy_digest
from reval_core.model.noise import LEAST, Noise, is_noise, within_noise
from reval_core.model.scoring import Scores
from reval_core.model.token_batch import Rows, collate, micro_batch_limit, micro_batches, pad_rows
from reval_core.objectives import Inputs, Outputs, make_objective, objective_identity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tick = Callable[[int, int], None]
"""A progress callback, called with the units of work done and their total."""

Part = tuple[list[int], dict[str, np.ndarray]]
"""Rows of a draw, and the objective's outputs for them: one array per name."""

LEARNER_VERSION = "4"
"""Increment this when a change to the code changes the resulting weights."""


class Learner:
    """The weights of the policy, their optimizer, and the chain of identities."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: config.Objective,
        settings: config.Learner,
        policy: str,
        temperature: float = 1.0,
        seed: int = 0,
        first_processes: int | None = None,
    ) -> None:
        """Create a learner for a float32 model. With several processes, all of them must do so.

        Args:
            model: The model. With `precision: bfloat16` its parameters are replaced by their bfloat16 copy, and
                with `shard` by shards.
            objective: The config section `objective`.
            settings: The config section `learner`.
            policy: The identity of the weights of `model`.
            temperature: The temperature at which trajectories are scored.
            seed: The seed of the rounding thresholds of the copy; the same for all policies that are compared.
            first_processes: The number of processes at the start of the chain of identities; by default that of
                now.
        """
        settings = settled_learner(settings)
        if settings.deterministic:
            announce_deterministic()
        self.objective = objective
        self.policy: str | None = policy
        """The identity of the weights, or None while updates are in progress."""
        self.before: Snapshot | None = None
        """The weights before the last call of `learn`, if it was called with `keep_before`."""
        self.updates_done = 0
        self.guard = Guard(settings.spike_limit)
        self.processes = launch.count()
        """The number of processes that train together."""
        self.first_processes = first_processes or self.processes
        self.device = processes.start()
        self._settings = settings
        self._temperature = temperature
        self._objective = make_objective(**objective.model_dump())
        self._has_residual = objective.has_residual
        self._noise = Noise(settings.noise, settings.noise) if settings.noise else LEAST[settings.precision]
        self.weights = make_weights(model, settings, seed, self.device)
        self.is_sharded = is_sharded(settings)
        self.model = self.weights.model
        """The model, whose parameters may be shards: see `whole`."""
        self.optimizer = _adamw(self.weights.masters.values(), settings)
        self._identity = [
            LEARNER_VERSION,
            objective_identity(**objective.model_dump()),
            settings.model_dump(),
            temperature,
            model_identity(model),
            torch.__version__,
            torch.get_num_threads(),
            self.device.type,
            self.first_processes,
            seed if settings.precision == "bfloat16" else None,
        ]

    @classmethod
    def of(
        cls, model: PreTrainedModel, run: config.Config, policy: str, first_processes: int | None = None
    ) -> Learner:
        """Create a learner with the settings of a run."""
        temperature, seed = run.scoring_temperature, run.seed
        return cls(model, run.objective, run.learner, policy, temperature, seed, first_processes)

    def next_policy(self, policy: str, draws: Iterable[Drawn]) -> str:
        """The identity of the policy that results from `policy` and these draws."""
        return digest(policy, [drawn.identity for drawn in draws], self._identity)

    def learn(
        self, draws: Iterable[Drawn], tick: Tick = lambda done, total: None, keep_before: bool = False
    ) -> list[Update]:
        """Take one optimizer step per draw, in order; afterwards `policy` is the identity of the result.

        An interruption leaves `policy` None: the weights then have no identity and must be reconstructed.

        Args:
            draws: One per update.
            tick: Called with the updates done and their total.
            keep_before: Keep the weights from before the updates in `before`, in CPU memory.

        Returns:
            One `Update` per draw.

        Raises:
            RunStopped: A loss or the gradient is not finite, or the gradient is a spike; names the trajectories.
        """
        assert self.policy is not None, "weights without an identity cannot be trained further"
        batches = list(draws)
        after = self.next_policy(self.policy, batches)
        self.policy = None
        self.before = None  # free the old snapshot before taking another
        self.before = Snapshot(self.weights.computing) if keep_before else None
        updates = []
        with self.as_in_updates(), deterministic_kernels() if self._settings.deterministic else nullcontext():
            for drawn in batches:
                updates.append(self._update(drawn))
                tick(len(updates), len(batches))
        self.optimizer.zero_grad(set_to_none=True)  # hold no gradient memory while rollouts are generated
        self.policy = after
        return updates

    def _update(self, drawn: Drawn) -> Update:
        started = time.perf_counter()
        lr = learning_rate(self._settings, self.updates_done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        found = self._whole(self._gradients(drawn))
        norm = self.weights.clip(self._settings.grad_clip)
        loss, delta, pulls = found.pop("loss") * drawn.weight, found.pop("delta"), found.pop("pulls")
        skipped = False
        if self._has_residual:
            sigma = (drawn.noise or self._noise).sigma(drawn.tokens)
            skipped = is_noise(np.where(pulls, delta, 0), sigma)
            found["quiet"] = within_noise(delta, sigma)
        self.guard.check(drawn.ids, loss, norm, usual=not skipped)
        if not skipped:
            self._step()
        self.updates_done += 1
        return Update(
            loss=float(np.mean(loss)),
            grad_norm=norm,
            lr=lr,
            tokens=sum(len(response) for response in drawn.responses),
            seconds=time.perf_counter() - started,
            delta=delta,
            value_term=found.pop("value_term"),
            log_ratio=found.pop("log_ratio"),
            metrics={name: float(np.mean(values)) for name, values in found.items()},
            skipped=skipped,
        )

    def whole(self) -> AbstractContextManager[PreTrainedModel]:
        """The whole model in the first process, inside the context. With shards, every process must call it.

        Without shards it is `model` itself, in every process. With them it is a second model in CPU memory, for
        saving, digests and an engine.
        """
        return self.weights.whole(masters=False)

    def masters(self) -> AbstractContextManager[PreTrainedModel]:
        """As `whole`, with the float32 weights that the optimizer holds. For saving, not for computing."""
        return self.weights.whole(masters=True)

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Compute with the weights in `before`, for scoring, inside the context.

        An interruption leaves `policy` None, as in `learn`.
        """
        assert self.before is not None, "learn() was not called with keep_before"
        policy, self.policy = self.policy, None
        with self.before.swapped_in():
            yield
        self.policy = policy

    def content(self) -> str:
        """The digest of the float32 weights. With shards, every process must call it."""
        with self.masters() as model:
            found = policy_digest(model) if launch.is_first() or not self.is_sharded else ""
        return processes.gathered(found)[0] if self.is_sharded else found

    def checksum(self) -> str:
        """The checksum of the float32 weights, on their device. With shards, every process must call it."""
        return self.weights.checksum()

    def as_in_updates(self) -> AbstractContextManager[None]:
        """Inside the context, run the forward pass as updates do: with gradient checkpointing where it is set."""
        return checkpointed_layers(self.model) if self._settings.gradient_checkpointing else nullcontext()

    def _step(self) -> None:
        self.optimizer.step()
        self.weights.refresh()

    def _gradients(self, drawn: Drawn) -> list[Part]:
        """Accumulate the gradients of this process's micro-batches, and sum them over the processes."""
        parts = []
        for rows in self._share(drawn):
            if rows:
                parts.append((rows, self._backward(drawn, rows, share=1.0)))
            else:  # this process has one micro-batch fewer, but must take part where shards are gathered
                self._backward(drawn, [0], share=0.0)
            self.weights.collect()
        self.weights.reduce()
        return parts

    def _share(self, drawn: Drawn) -> list[list[int]]:
        """The micro-batches of this process: as many as any other process has, so one may be empty."""
        lengths = [
            len(prompt) + len(response) for prompt, response in zip(drawn.prompts, drawn.responses, strict=True)
        ]
        max_tokens = micro_batch_limit(self.device, self._settings.micro_batch_tokens)
        groups = list(micro_batches(lengths, max_tokens, self._settings.packed))
        groups += [[]] * (-len(groups) % self.processes)
        return groups[launch.rank() :: self.processes]

    def _backward(self, drawn: Drawn, rows: list[int], share: float) -> dict[str, np.ndarray]:
        """Add the gradient of these rows' part of the loss mean_τ weight(τ) · loss(τ), times `share`."""
        sources = (drawn.prompts, drawn.responses, drawn.written)
        batch = collate(*([source[row] for row in rows] for source in sources), packed=self._settings.packed)
        scores = self.weights.scorer(batch.to(self.device), self._temperature)
        # Detach the objective from the model, to see for which trajectories its loss has a gradient.
        detached = Scores(scores.logprobs.detach().requires_grad_(), scores.values.detach().requires_grad_(), None)
        outputs = self._objective(self._inputs(drawn, rows, detached))
        weight = torch.from_numpy(drawn.weight[rows]).to(self.device)
        loss = (outputs.loss * weight).sum() * (share / len(drawn))
        slopes = torch.autograd.grad(loss, (detached.logprobs, detached.values), materialize_grads=True)
        torch.autograd.backward((scores.logprobs, scores.values), slopes)
        pulls = slopes[0].any(dim=1) | slopes[1].any(dim=1)
        return {name: column.detach().cpu().numpy() for name, column in _columns(outputs, pulls).items()}

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
            mean_tokens=drawn.mean_tokens,
        )

    def _whole(self, parts: list[Part]) -> dict[str, np.ndarray]:
        """The outputs of all micro-batches of all processes, [B] each, in the order of the draw."""
        parts = list(chain.from_iterable(processes.gathered(parts)))
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        return {name: np.concatenate([columns[name] for _, columns in parts])[order] for name in parts[0][1]}


def _adamw(parameters: Iterable[Tensor], settings: config.Learner) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(parameters),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def learning_rate(settings: config.Learner, updates_done: int) -> float:
    """The learning rate of the next update: linear warmup, then constant, linear or cosine decay to lr_end · lr."""
    warmup = min(1.0, (updates_done + 1) / (settings.warmup_updates + 1))
    if settings.decay_updates is None:
        return settings.lr * warmup
    progress = min(1.0, max(0, updates_done - settings.warmup_updates) / settings.decay_updates)
    left = 1 - progress if settings.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * warmup * (settings.lr_end + (1 - settings.lr_end) * left)


def _columns(outputs: Outputs, pulls: Tensor) -> dict[str, Tensor]:
    known = {name: getattr(outputs, name) for name in ("loss", "delta", "value_term", "log_ratio")}
    return {**known, "pulls": pulls, **outputs.metrics}
