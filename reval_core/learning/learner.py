"""The learner: K updates per round on drawn trajectories, and the identity of the resulting policy.

It holds one model. The scores under the reference (log π_ref, V_ref) come with the draw, so no reference model is
loaded, and memory is that of supervised fine-tuning. In bfloat16 the model is a copy of float32 weights that only
the optimizer holds (`reval_core.model.low_precision`).

The identities of policies form a chain: the identity of the next policy is a digest of the identity of this one, of
every drawn trajectory and of the learner's settings and versions. So a policy can be named before its weights
exist, and reconstructed from a checkpoint and the recorded draws.

Under `accelerate launch` every process holds a learner and calls `learn` with the same draws. Each process takes
its share of the micro-batches, gradients are averaged before the step, and every process returns the whole update.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import accelerate
import numpy as np
import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor

from reval_core import config
from reval_core.atomic_files import digest
from reval_core.errors import InputError
from reval_core.learning.checksum import weights_checksum
from reval_core.learning.deterministic import announce_deterministic, deterministic_kernels
from reval_core.learning.guards import Guard
from reval_core.learning.precision import settled_learner
from reval_core.learning.snapshot import Snapshot
from reval_core.model.layers import checkpointed_layers, set_up
from reval_core.model.loading import model_identity, policy_digest
from reval_core.model.low_precision import LowPrecisionCopy
from reval_core.model.noise import LEAST, Noise, is_noise, within_noise
from reval_core.model.scoring import Scorer, Scores
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


@dataclass(frozen=True)
class Drawn:
    """The B trajectories of one update. `Rows` hold one array per trajectory, as long as its prompt or response."""

    ids: np.ndarray
    prompts: Rows
    responses: Rows
    written: Rows
    engine_logprobs: Rows
    old_logprobs: Rows
    """log π(a_h|s_h) of the policy that wrote the response, by the trainer; NaN if unknown, like the engine's."""
    truncated: np.ndarray
    """[B] bool: the response was cut at the length limit."""
    weight: np.ndarray
    """[B] importance weights of the draw."""
    reward: np.ndarray
    advantage: np.ndarray
    log_ref: np.ndarray
    value_ref: np.ndarray
    identity: str
    """The digest of everything that the learner reads from the draw."""
    noise: Noise | None = None
    """The measured noise of scores; None for the minimum of the learner's precision."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def tokens(self) -> np.ndarray:
        """The number of tokens written by the policy [B]."""
        return np.array([int(mask.sum()) for mask in self.written])

    @cached_property
    def mean_tokens(self) -> float:
        """Mean tokens written by the policy per trajectory."""
        return int(self.tokens.sum()) / len(self)


@dataclass(frozen=True)
class Update:
    """The result of one update. Arrays are [B], in the order of the draw, with values from before the step."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    delta: np.ndarray
    value_term: np.ndarray
    log_ratio: np.ndarray
    metrics: dict[str, float]
    """The objective's own metrics, as means over the trajectories."""
    skipped: bool
    """Whether the optimizer step was skipped because all residuals may be noise."""


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
    ) -> None:
        """Create a learner for a float32 model.

        Args:
            model: The model. With `precision: bfloat16` its parameters are replaced by their bfloat16 copy.
            objective: The config section `objective`.
            settings: The config section `learner`.
            policy: The identity of the weights of `model`.
            temperature: The temperature at which trajectories are scored.
            seed: The seed of the rounding thresholds of the copy; the same for all policies that are compared.

        Raises:
            InputError: bfloat16 under FSDP.
        """
        settings = settled_learner(settings)
        if settings.deterministic:
            announce_deterministic()
        self.model = model
        self.objective = objective
        self.policy: str | None = policy
        """The identity of the weights, or None while updates are in progress."""
        self.before: Snapshot | None = None
        """The weights before the last call of `learn`, if it was called with `keep_before`."""
        self.updates_done = 0
        self.guard = Guard(settings.spike_limit)
        self._settings = settings
        self._temperature = temperature
        self._objective = make_objective(**objective.model_dump())
        self._has_residual = objective.has_residual
        self._noise = Noise(settings.noise, settings.noise) if settings.noise else LEAST[settings.precision]
        self._accelerator = accelerate.Accelerator(
            # Otherwise processes that find no GPU would each train alone.
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",
        )
        set_up(model, settings.packed, settings.compiles_on(self._accelerator.device.type))
        self._copy: LowPrecisionCopy | None = None
        self._scorer: Any = Scorer(model)
        if settings.precision == "bfloat16":
            if self._accelerator.distributed_type == DistributedType.FSDP:
                raise InputError("learner.precision: bfloat16 is not supported under FSDP; use float32 or DDP")
            self._copy = LowPrecisionCopy(model.to(self._accelerator.device), seed)
            self.optimizer = self._accelerator.prepare(_adamw(self._copy.masters.values(), settings))
        else:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self._scorer, self.optimizer = self._accelerator.prepare(self._scorer, _adamw(trained, settings))
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
            self._copy and seed,
        ]

    @classmethod
    def of(cls, model: PreTrainedModel, run: config.Config, policy: str) -> Learner:
        """Create a learner with the settings of a run."""
        return cls(model, run.objective, run.learner, policy, run.scoring_temperature, run.seed)

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
        self.before = Snapshot(self.model) if keep_before else None
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
        norm = float(self._accelerator.clip_grad_norm_(self._stepped(), self._settings.grad_clip))
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

    @property
    def processes(self) -> int:
        """The number of processes that train together."""
        count: int = self._accelerator.num_processes
        return count

    def state(self) -> dict[str, Tensor]:
        """The whole float32 weights by name, also where they are sharded. Every process must call it."""
        with self.masters():
            state = self._accelerator.get_state_dict(self._scorer)
        return {name.removeprefix("model."): tensor for name, tensor in state.items()}

    @contextmanager
    def masters(self) -> Iterator[PreTrainedModel]:
        """The model with the float32 weights that the optimizer holds, inside the context.

        They are the model's own parameters unless these are a copy. For saving and digests, not for computing.
        """
        with self._copy.replaced_by_masters() if self._copy else nullcontext():
            yield self.model

    @contextmanager
    def as_before(self) -> Iterator[PreTrainedModel]:
        """The model with the weights in `before`, for scoring, inside the context.

        An interruption leaves `policy` None, as in `learn`.
        """
        assert self.before is not None, "learn() was not called with keep_before"
        policy, self.policy = self.policy, None
        with self.before.swapped_in(self.model):
            yield self.model
        self.policy = policy

    def content(self) -> str:
        """The digest of the float32 weights."""
        with self.masters() as model:
            return policy_digest(model)

    def checksum(self) -> str:
        """The checksum of the trained float32 weights, computed on their device."""
        return weights_checksum({name: tensor for name, tensor in self.trained().items() if tensor.requires_grad})

    def trained(self) -> Mapping[str, Tensor]:
        """The tensors that the optimizer holds, by the names of the model's parameters."""
        return self._copy.masters if self._copy else dict(self.model.named_parameters())

    def as_in_updates(self) -> AbstractContextManager[None]:
        """Inside the context, run the forward pass as updates do: with gradient checkpointing where it is set."""
        return checkpointed_layers(self.model) if self._settings.gradient_checkpointing else nullcontext()

    def _stepped(self) -> Iterable[Tensor]:
        return self._copy.masters.values() if self._copy else self._scorer.parameters()

    def _step(self) -> None:
        self.optimizer.step()
        if self._copy is not None:
            self._copy.refresh()

    def _gradients(self, drawn: Drawn) -> list[Part]:
        """Accumulate the gradients of this process's micro-batches; average over processes at the last one."""
        parts = []
        own = self._share(drawn)
        for number, rows in enumerate(own, start=1):
            with nullcontext() if number == len(own) else self._accelerator.no_sync(self._scorer):
                if rows:
                    parts.append((rows, self._backward(drawn, rows, share=1.0)))
                else:  # this process has one micro-batch fewer, but must take part in the reduction
                    self._backward(drawn, [0], share=0.0)
        if self._copy is not None and self.processes > 1:
            self._copy.average_gradients()
        return parts

    def _share(self, drawn: Drawn) -> list[list[int]]:
        """The micro-batches of this process: as many as any other process has, so one may be empty."""
        lengths = [
            len(prompt) + len(response) for prompt, response in zip(drawn.prompts, drawn.responses, strict=True)
        ]
        max_tokens = micro_batch_limit(self._accelerator.device, self._settings.micro_batch_tokens)
        groups = list(micro_batches(lengths, max_tokens, self._settings.packed))
        processes = self._accelerator.num_processes
        groups += [[]] * (-len(groups) % processes)
        return groups[self._accelerator.process_index :: processes]

    def _backward(self, drawn: Drawn, rows: list[int], share: float) -> dict[str, np.ndarray]:
        """Add the gradient of these rows' part of the loss mean_τ weight(τ) · loss(τ), times `share`."""
        device = self._accelerator.device
        sources = (drawn.prompts, drawn.responses, drawn.written)
        batch = collate(*([source[row] for row in rows] for source in sources), packed=self._settings.packed)
        scores = self._scorer(batch.to(device), self._temperature)
        # Detach the objective from the model, to see for which trajectories its loss has a gradient.
        detached = Scores(scores.logprobs.detach().requires_grad_(), scores.values.detach().requires_grad_(), None)
        outputs = self._objective(self._inputs(drawn, rows, detached))
        weight = torch.from_numpy(drawn.weight[rows]).to(device)
        # Gradients are averaged over the processes, and the loss is a mean over the draw.
        share *= self._accelerator.num_processes / len(drawn)
        slopes = torch.autograd.grad(
            (outputs.loss * weight).sum() * share, (detached.logprobs, detached.values), materialize_grads=True
        )
        # Not accelerator.backward, which divides by the gradient accumulation steps set at launch.
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
        if self._accelerator.num_processes > 1:
            parts = gather_object(parts)
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
