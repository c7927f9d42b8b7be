"""Estimates of the GPU memory of each stage of a run, from the settings and the model's sizes. All values are
bytes.

With P parameters, T of them trained, L layers of hidden size d, total width A of the heads and G of the key-value
heads, feed-forward size F, a vocabulary of W tokens and micro-batches of n tokens (`learner.micro_batch_tokens`):

    weights      4 P            float32, on every GPU; in bfloat16 the optimizer's, 4 T
    copy         2 P            bfloat16 only: the weights that compute
    moments      8 T            AdamW's two, from the first update
    gradients    4 T            while learning
    gathered     e (E + 2 P_l)  with shards: embedding and head, and two layers; while learning also their
                                gradients, and 4 E to reduce the former
    a layer      n (16 d + 8 A + 8 F) in bfloat16, n (24 d + 16 A + 16 F) in float32: saved for its backward pass
    activations  L layers; with checkpointing e n d L plus the one layer that is recomputed
    passing      2 e n F        gradients in flight through a layer
    head         6 min(4096 n, 2^26) + 12 n d + 4 · 4096 d + e W d   a block of logits and its gradient, hidden
                 states, the gradient of a slice, the gradient of the head
    keys, values 2 L G e per token; e is the bytes per number in the computing precision

With `learner.shard`, weights, copy, moments, gradients and reference are divided by the number of GPUs, assumed to
be in one host. E are the parameters of embedding and head, P_l those of a layer. The sharded reference stays on
the GPUs, and the transformers engine generates with a whole model on the first.

The value per layer counts the tensors that torch saves for layers of Llama and Qwen with an attention that
materialises no [n, n] matrix (sdpa, flash). The backward pass processes the head first and then the layers. By then
only the head's gradient remains, and only if the head is tied to the embedding; the larger of the two peaks counts.
The largest micro-batch of an update is assumed to be full. The reference resides in CPU memory and is on the GPU
only while it scores. A warm start, a reference reset and the measurement of noise need less than an update. torch's
cached free memory is released before vLLM wakes up.
benchmarks/memory.py compares the estimates with measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from reval_core import launch
from reval_core.config import Config, Rollouts, TransformersEngine, VllmEngine, VllmServerEngine
from reval_core.engines.choice import choose
from reval_core.model.lm_head import TILES
from reval_core.planning.engine_memory import engine_parts, longest
from reval_core.planning.model_sizes import FLOAT, HALF, Sizes

CONTEXT = 1_000_000_000
"""Assumed memory of CUDA and torch's libraries per process, without tensors. vLLM is another process."""

WORKSPACE = 1 << 25
"""Workspace that cuBLAS allocates through torch on a Hopper GPU."""

ROOM = 0.9
"""Fraction of a GPU up to which an update is estimated to fit without gradient checkpointing."""

_TIGHT = 0.9
"""Fraction of a GPU above which an error of the estimate, mainly of the assumed values, may matter."""


@dataclass(frozen=True)
class Card:
    """A GPU with its total and free memory, in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class StageMemory:
    """The peak memory of a stage on the first GPU, which holds the most."""

    stage: str
    parts: dict[str, int] = field(default_factory=dict)
    remedy: str = ""
    """The setting to change if it does not fit."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.parts.values())

    def fits(self, gpu_bytes: float) -> bool:
        """Whether it fits a GPU, with a nonempty KV cache for vLLM."""
        return self.total <= gpu_bytes and self.parts.get("cache") != 0


def stage_memory(config: Config, sizes: Sizes, gpus: int, gpu_bytes: int) -> list[StageMemory]:
    """Estimate the peak memory of each stage on the first GPU.

    Args:
        config: the settings of the run.
        sizes: the sizes of its model.
        gpus: the number of GPUs.
        gpu_bytes: the memory of each; 0 if unknown.
    """
    config = checkpointing_resolved(config, sizes, gpus, gpu_bytes)
    half, shards = _half(config), shard_count(config, gpus)
    resident = {
        "weights": FLOAT * (sizes.trained if half else sizes.parameters) // shards,
        "copy": HALF * sizes.parameters // shards if half else 0,
        "moments": 2 * FLOAT * sizes.trained // shards,
    }
    if shards > 1:
        resident["reference"] = computing_bytes(config) * sizes.parameters // shards
    resident["other"] = CONTEXT * (2 if config.engine.kind in ("vllm", "auto") else 1) + WORKSPACE
    engine = config.engine
    if isinstance(engine, VllmEngine) and not engine.sleep:
        resident |= engine_parts(engine, sizes, gpu_bytes)
    learning = _learning(config, sizes, gpus, resident)
    scoring = _scoring(config, sizes, gpus, resident)
    saving = StageMemory("checkpoint", resident, _smaller(config, sizes))
    stages = [scoring, learning, saving]
    if isinstance(config.rollouts, Rollouts):
        own, evaluated = config.generation.batch, config.evaluation.batch or config.generation.batch
        if shards > 1 and isinstance(config.engine, TransformersEngine):
            generating = {**resident, "engine": computing_bytes(config) * sizes.parameters}
        else:
            generating = resident
        rollouts = _generating("rollouts", own, config, sizes, gpu_bytes, generating)
        evaluation = _generating("evaluation", evaluated, config, sizes, gpu_bytes, generating)
        stages = [rollouts, scoring, learning, evaluation, saving]
    if 0 < gpu_bytes < saving.total:  # then no setting of a single stage helps
        return [replace(one, remedy=saving.remedy) for one in stages]
    return stages


def card() -> Card | None:
    """The GPU that a run on this machine uses, or None if there is none."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Card(torch.cuda.get_device_name(), total, free)


def run_memory(config: Config, card: Card | None) -> list[StageMemory]:
    """Estimate the peak memory of each stage on this machine. Raises InputError if the model is not available."""
    if config.engine.kind == "auto" and choose(config.model, config.engine).kind == "transformers":
        config = config.model_copy(update={"engine": TransformersEngine()})
    return stage_memory(config, Sizes.of(config.model), launch.count(), card.total if card else 0)


def memory_advice(config: Config, stage: str) -> str:
    """The settings that reduce the memory of a stage; empty for a stage that does not run the model."""
    if stage == "warm_start" and config.model.warm_start is not None:
        return "lower model.warm_start.batch"
    alike = {"warm_start": "checkpoint", "reference_reset": "consistency", "residual_evaluation": "consistency"}
    found = {one.stage: one.remedy for one in run_memory(config, card())}
    return found.get(alike.get(stage, stage), "")


def overflows(stages: Sequence[StageMemory], card: Card) -> list[str]:
    """One line per stage that does not fit a GPU, the largest stage first."""
    return [_overflow(one, card) for one in _largest_first(stages) if not one.fits(card.total)]


def tight_fit(stages: Sequence[StageMemory], card: Card) -> list[str]:
    """One line if the largest stage may not fit, given errors of the estimate or other processes on the GPU."""
    largest = _largest_first(stages)[0]
    needs = f"{largest.stage} needs about {_gigabytes(largest.total)} GB"
    if largest.total > card.free:
        return [f"{needs} and {_gigabytes(card.free)} GB of the GPU are free; stop other processes on it"]
    if largest.total > _TIGHT * card.total:
        return [f"{needs} of the GPU's {_gigabytes(card.total)} GB, which is close; if it fails: {largest.remedy}"]
    return []


def _largest_first(stages: Sequence[StageMemory]) -> list[StageMemory]:
    return sorted(stages, key=lambda one: -one.total)


def _overflow(stage: StageMemory, card: Card) -> str:
    if stage.total <= card.total:
        return f"{stage.stage} has no room on the GPU for vLLM's keys and values; {stage.remedy}"
    needs = f"{stage.stage} needs about {_gigabytes(stage.total)} GB of GPU memory"
    return f"{needs}, and the GPU has {_gigabytes(card.total)} GB; {stage.remedy}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f}"


def needs_checkpointing(config: Config, sizes: Sizes, gpus: int, gpu_bytes: int) -> bool:
    """Whether an update does not fit the first of `gpus` GPUs without gradient checkpointing.

    False if `gpu_bytes` is 0: nothing is known about the GPU.
    """
    stages = stage_memory(_with_checkpointing(config, False), sizes, gpus, gpu_bytes)
    return any(0 < ROOM * gpu_bytes < one.total for one in stages if one.stage == "learning")


def checkpointing_resolved(config: Config, sizes: Sizes, gpus: int, gpu_bytes: int) -> Config:
    """The config with `learner.gradient_checkpointing` resolved for `gpus` GPUs, if it is not set."""
    if config.learner.gradient_checkpointing is not None:
        return config
    return _with_checkpointing(config, needs_checkpointing(config, sizes, gpus, gpu_bytes))


def with_checkpointing(config: Config, card: Card | None) -> Config:
    """The config with `learner.gradient_checkpointing` resolved for this machine, if it is not set."""
    if config.learner.gradient_checkpointing is not None:
        return config
    needed = card is not None and needs_checkpointing(config, Sizes.of(config.model), launch.count(), card.total)
    return _with_checkpointing(config, needed)


def _with_checkpointing(config: Config, chosen: bool) -> Config:
    learner = config.learner.model_copy(update={"gradient_checkpointing": chosen})
    return config.model_copy(update={"learner": learner})


def layer_bytes(config: Config, sizes: Sizes) -> int:
    """Bytes that one layer saves for its backward pass over a full micro-batch."""
    wide, rest = (16, 8) if _half(config) else (24, 16)
    a_token = wide * sizes.width + rest * (sizes.attention + sizes.feed_forward)
    return config.learner.micro_batch_tokens * a_token


def _learning(config: Config, sizes: Sizes, gpus: int, resident: dict[str, int]) -> StageMemory:
    learner = config.learner
    activations, head = max(_backward(config, sizes), key=sum)
    parts = {
        **resident,
        "gradients": FLOAT * sizes.trained // shard_count(config, gpus),
        **_gathered(config, sizes, gpus, backward=True),
        "activations": activations,
        "head": head,
    }
    remedies = [] if learner.gradient_checkpointing else ["set learner.gradient_checkpointing: true"]
    if learner.micro_batch_tokens > 8192:
        remedies.append("lower learner.micro_batch_tokens")
    remedies.append(_smaller(config, sizes))
    return StageMemory("learning", parts, ", or ".join(remedies))


def _backward(config: Config, sizes: Sizes) -> list[tuple[int, int]]:
    """Bytes of activations and of the head during the backward pass: while it is at the head, and at a layer."""
    learner, layer, number = config.learner, layer_bytes(config, sizes), computing_bytes(config)
    boundaries = number * learner.micro_batch_tokens * sizes.width * sizes.layers
    kept = boundaries if learner.gradient_checkpointing else sizes.layers * layer
    recomputed = layer if learner.gradient_checkpointing else 0
    passing = 2 * number * learner.micro_batch_tokens * sizes.feed_forward
    head_gradient = _head_gradient(config, sizes) if sizes.tied else 0
    return [(kept, _head(config, sizes, backward=True)), (kept + recomputed + passing, head_gradient)]


def shard_count(config: Config, gpus: int) -> int:
    """The number of GPUs that share a learner."""
    return 1 if config.learner.shard == "none" else gpus


def _gathered(config: Config, sizes: Sizes, gpus: int, backward: bool) -> dict[str, int]:
    """Bytes of the weights that a sharded model has gathered at once, and of their gradients."""
    if shard_count(config, gpus) == 1:
        return {}
    layer = (sizes.parameters - sizes.ends) // sizes.layers
    weights = computing_bytes(config) * (sizes.ends + 2 * layer)
    return {"gathered": weights + backward * (computing_bytes(config) * (sizes.ends + layer) + FLOAT * sizes.ends)}


def _scoring(config: Config, sizes: Sizes, gpus: int, resident: dict[str, int]) -> StageMemory:
    """The policy and, if it differs, the reference, whose weights are a second model unless adapters are
    trained."""
    parts = {
        **resident,
        "activations": layer_bytes(config, sizes),
        "head": _head(config, sizes, backward=False),
        **_gathered(config, sizes, gpus, backward=False),
    }
    if "reference" not in resident:
        parts["reference"] = 0 if config.model.lora is not None else computing_bytes(config) * sizes.parameters
    return StageMemory("consistency", parts, f"lower learner.micro_batch_tokens, or {_smaller(config, sizes)}")


def _generating(
    stage: str, batch: int, config: Config, sizes: Sizes, gpu_bytes: int, resident: dict[str, int]
) -> StageMemory:
    """The memory of generation. transformers generates `batch` responses together."""
    parts, engine = {**resident}, config.engine
    if isinstance(engine, VllmServerEngine):
        return StageMemory(stage, parts, _smaller(config, sizes))
    if isinstance(engine, TransformersEngine):
        length = longest(config.generation, sizes)
        parts["cache"] = batch * length * sizes.cache_a_token(computing_bytes(config))
        setting = "rollouts.prompts_per_shard" if stage == "rollouts" else "evaluation.batch"
        return StageMemory(stage, parts, f"lower {setting}, or use engine.kind: vllm")
    vllm = engine if isinstance(engine, VllmEngine) else VllmEngine(kind="vllm")
    parts |= engine_parts(vllm, sizes, gpu_bytes)
    if not parts["cache"]:
        remedy = "raise engine.gpu_memory_utilization: the weights do not fit this fraction"
    else:
        lower = "engine.gpu_memory_utilization" if vllm.kv_cache_gib is None else "engine.kv_cache_gib"
        remedy = f"lower {lower}, or use engine.kind: vllm-server on other GPUs"
    return StageMemory(stage, parts, remedy)


def _head(config: Config, sizes: Sizes, backward: bool) -> int:
    tokens, tile = config.learner.micro_batch_tokens, TILES["cuda"]
    logits = min(tokens * min(tile.columns, sizes.vocabulary), tile.logits)
    forward = logits * FLOAT + tokens * 4 * sizes.width
    if not backward:
        return forward
    more = logits * HALF + tokens * 8 * sizes.width + FLOAT * min(tile.columns, sizes.vocabulary) * sizes.width
    return forward + more + _head_gradient(config, sizes)


def _head_gradient(config: Config, sizes: Sizes) -> int:
    trained = config.model.lora is None  # adapters do not train the head
    return computing_bytes(config) * sizes.vocabulary * sizes.width if trained else 0


def computing_bytes(config: Config) -> int:
    """Bytes of a number in the computing precision."""
    return HALF if _half(config) else FLOAT


def _half(config: Config) -> bool:
    return config.learner.precision != "float32"  # on a GPU, auto is bfloat16


def _smaller(config: Config, sizes: Sizes) -> str:
    if config.model.lora is not None:
        return "use a smaller model"
    resident = (4 * FLOAT + (HALF if _half(config) else 0)) * sizes.parameters
    alone = f"weights, gradients and moments alone are {resident / 1e9:,.0f} GB"
    if config.learner.shard != "none":
        return f"use more GPUs: {alone} on all of them together"
    return f"train adapters (model.lora), or shard the weights over several GPUs (learner.shard: all): {alone}"
