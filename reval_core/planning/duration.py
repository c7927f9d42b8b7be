"""Estimates of the time of a run on GPUs of the kind H100: the seconds of each stage per round.

With P weights that multiply a token (without the embedding, unless it is also the head), L layers, total width A of
the heads, sequences of n tokens on average, and e bytes per number:

    a forward pass       2 P + 2 L A n operations per token
    learning             3 forward passes per token, 2 if adapters are trained, and one more with checkpointing
    consistency          one forward pass for the policy and one for the reference; one more if log-probs are not
                         compared at the sampling temperature
    reference_reset      the same for the whole replay buffer; the new reference is the policy, unless averaged
    rollouts, evaluation each step of an engine reads its weights, and the keys and values of its responses
    weight_sync          the engine's weights are written once and read once, and for servers hashed both times
    verification         the responses, divided among the workers
    checkpoint           12 bytes per trained weight

Learning and scoring are divided among all GPUs, generation among the replicas of the engine. With shards, each
micro-batch gathers the weights for its forward and its backward pass (e P each) and reduces the gradients (4 P);
without, an update reduces them once (8 P). That time is added, although most of it overlaps with computation. A
replica needs as many steps as its longest response has tokens, assumed to be `rollouts.max_tokens`, and more if its
cache or `engine.max_num_seqs` does not hold all responses at once. Not included: starting the processes, compiling,
prompts, sleeping and waking, the database.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from reval_core.config import Config, Rollouts, VllmEngine, VllmServerEngine
from reval_core.engines.placement import replica_count
from reval_core.planning.engine_memory import cache_bytes, most_sequences, number_bytes, token_bytes, weight_bytes
from reval_core.planning.forecast import held_out_problems
from reval_core.planning.gpu_memory import checkpointing_resolved, computing_bytes, shard_count
from reval_core.planning.model_sizes import FLOAT, HALF, Sizes

PEAK = {HALF: 989e12, FLOAT: 67e12}
"""Operations per second of an H100 SXM by the bytes of a number, dense, by the manufacturer."""

BANDWIDTH = 3.35e12
"""Bytes per second of its memory, by the manufacturer."""

UTILISATION = 0.38
"""Fraction of the peak reached by learning, measured on an H200 (benchmarks/baselines/gpu.json, "stream")."""

UPDATE = 8.8e-11
"""Seconds per trained weight to clip, step and round, measured on an H200 (the same file, "the update alone")."""

JUDGING = 0.025
"""Seconds that a worker needs to judge a response, measured (benchmarks/baselines/verification.json)."""

READING = 0.7
"""Assumed fraction of the memory's bandwidth that generation reaches."""

STEP = 0.002
"""Assumed seconds of a generation step besides reading and computing."""

LINK = 300e9
"""Assumed bytes per second between the GPUs of a host."""

HANDOVER = 2e9
"""Assumed bytes per second at which weights are written for the engine, and read by it."""

HASHING = 1e9
"""Assumed bytes per second of the checksum of weights (docs/decisions/0044-replicas.md)."""

DISK = 1e9
"""Assumed bytes per second at which a checkpoint is written."""

PROMPT = 200
"""Assumed mean tokens of a prompt."""

SERVER_MEMORY = 0.9
"""Assumed fraction of its GPU that a vLLM server of one's own uses: vLLM's default."""


@dataclass(frozen=True)
class Duration:
    """The estimated time of a run."""

    rounds: int
    gpus: int
    """GPUs that learn; those of separate servers are not included."""
    stage_seconds: Mapping[str, float]
    """Mean seconds of each stage per round. What is not due in every round is spread over all of them."""

    @property
    def round_seconds(self) -> float:
        """Mean seconds per round."""
        return sum(self.stage_seconds.values())

    @property
    def hours(self) -> float:
        """Hours of the whole run."""
        return self.rounds * self.round_seconds / 3600

    @property
    def gpu_hours(self) -> float:
        """GPU hours of the whole run; an idle GPU counts."""
        return self.gpus * self.hours


def duration(config: Config, sizes: Sizes, gpus: int, gpu_bytes: int, response_tokens: int) -> Duration | None:
    """Estimate the time of a run on one host.

    Args:
        config: the settings of the run.
        sizes: the sizes of its model.
        gpus: the number of GPUs.
        gpu_bytes: the memory of each.
        response_tokens: the mean tokens of a response.

    Returns:
        The estimate; None if no vLLM generates, or if its cache has no room for a response.
    """
    replicas = Replicas.of(config, gpus)
    if replicas is None or not replicas.at_once(sizes, gpu_bytes, response_tokens):
        return None
    config = checkpointing_resolved(config, sizes, gpus, gpu_bytes)
    rounds, evaluation = config.rounds, config.evaluation
    longest, count = config.generation.max_tokens, config.generation.trajectories
    evaluated = held_out_problems(config) * evaluation.samples
    evaluations, checkpoints = (
        1 + math.ceil(rounds / every) for every in (evaluation.every, config.checkpoints.every)
    )
    judging = JUDGING / config.verification.workers
    passes = 2 + (config.generation.temperature != config.scoring_temperature)
    resets = rounds // config.reference.reset_every if config.reference.reset_every else 0
    rescoring = passes - (config.reference.ema is None)
    tokens = PROMPT + response_tokens

    def generation(responses: int) -> float:
        return replicas.seconds(sizes, gpu_bytes, responses, response_tokens, longest)

    each_round = {
        "weight_sync": replicas.loading(sizes),
        "rollouts": generation(count),
        "verification": count * judging,
        "consistency": passes * _scoring(config, sizes, gpus, count, tokens),
        "learning": config.learner.updates * _update(config, sizes, gpus, count, tokens),
    }
    sometimes = {
        "evaluation": evaluations * (generation(evaluated) + evaluated * judging) if evaluated else 0.0,
        "checkpoint": checkpoints * 3 * FLOAT * sizes.trained / DISK,
        "reference_reset": resets * rescoring * _scoring(config, sizes, gpus, config.replay.capacity, tokens),
    }
    return Duration(rounds, gpus, each_round | {stage: one / rounds for stage, one in sometimes.items()})


@dataclass(frozen=True)
class Replicas:
    """The vLLM engines that share the requests of a run."""

    engine: VllmEngine
    count: int
    served: bool = False
    """Whether they are servers, which verify the checksum of the weights."""

    @classmethod
    def of(cls, config: Config, gpus: int) -> Replicas | None:
        """The engines of a run on `gpus` GPUs; None if it does not generate with vLLM."""
        engine = config.engine
        if not isinstance(config.rollouts, Rollouts) or engine.kind == "transformers":
            return None
        if isinstance(engine, VllmServerEngine):
            server = VllmEngine(
                kind="vllm",
                dtype=engine.dtype,
                max_num_seqs=engine.requests_per_server,
                gpu_memory_utilization=SERVER_MEMORY,
            )
            return cls(server, len(engine.urls), served=True)
        own = engine if isinstance(engine, VllmEngine) else VllmEngine(kind="vllm")
        return cls(own, max(1, replica_count(own, gpus)), served=own.replicas is not None)

    @property
    def gpus(self) -> int:
        """The number of GPUs that generate."""
        return self.count * self.engine.tensor_parallel_size

    def at_once(self, sizes: Sizes, gpu_bytes: int, response_tokens: int) -> int:
        """The number of responses of mean length that a replica generates together."""
        a_response = token_bytes(self.engine, sizes) * (PROMPT + response_tokens)
        at_most = self.engine.max_num_seqs or most_sequences(gpu_bytes)
        return min(at_most, max(0, cache_bytes(self.engine, sizes, gpu_bytes)) // a_response)

    def loading(self, sizes: Sizes) -> float:
        """The seconds in which new weights are written once and read by all replicas."""
        weights = 2 * number_bytes(self.engine) * sizes.parameters
        return weights / HANDOVER + (weights / HASHING if self.served else 0)

    def seconds(self, sizes: Sizes, gpu_bytes: int, responses: int, response_tokens: int, longest: int) -> float:
        """The seconds that `responses` responses take, the longest of which has `longest` tokens."""
        mine = math.ceil(responses / self.count)
        later = max(0, mine - self.at_once(sizes, gpu_bytes, response_tokens))
        steps = longest + later * response_tokens / (mine - later)
        rate, width = READING * BANDWIDTH, self.engine.tensor_parallel_size
        a_step = STEP + weight_bytes(self.engine, sizes) / rate
        context = PROMPT + response_tokens / 2
        speed = UTILISATION * PEAK[number_bytes(self.engine)] * width
        a_token = context * token_bytes(self.engine, sizes) / rate + _forward(sizes, context) / speed
        return steps * a_step + mine * response_tokens * a_token


def _forward(sizes: Sizes, tokens: float) -> float:
    """Operations of a forward pass per token of a sequence of `tokens` tokens."""
    weights = sizes.parameters - (0 if sizes.tied else sizes.ends // 2)
    return 2 * weights + 2 * sizes.layers * sizes.attention * tokens


def _scoring(config: Config, sizes: Sizes, gpus: int, count: int, tokens: int) -> float:
    """Seconds of one forward pass over `count` sequences."""
    computing = count * tokens * _forward(sizes, tokens) / _speed(config, gpus)
    gathered = computing_bytes(config) * sizes.parameters if shard_count(config, gpus) > 1 else 0
    return computing + _micro_batches(config, gpus, count * tokens) * _exchange(gathered, gpus)


def _update(config: Config, sizes: Sizes, gpus: int, count: int, tokens: int) -> float:
    """Seconds of one update on `count` sequences."""
    shards = shard_count(config, gpus)
    passes = (3 if config.model.lora is None else 2) + bool(config.learner.gradient_checkpointing)
    computing = passes * count * tokens * _forward(sizes, tokens) / _speed(config, gpus)
    if shards > 1:
        each = (2 * computing_bytes(config) + FLOAT) * sizes.parameters
        exchange = _micro_batches(config, gpus, count * tokens) * _exchange(each, gpus)
    else:
        exchange = _exchange(2 * FLOAT * sizes.trained, gpus)
    return computing + exchange + UPDATE * sizes.trained / shards


def _speed(config: Config, gpus: int) -> float:
    """Operations per second of all GPUs together."""
    return gpus * UTILISATION * PEAK[computing_bytes(config)]


def _micro_batches(config: Config, gpus: int, tokens: int) -> int:
    """The number of micro-batches per GPU."""
    return math.ceil(tokens / (gpus * config.learner.micro_batch_tokens))


def _exchange(size: int, gpus: int) -> float:
    """Seconds in which `size` bytes that are spread over all GPUs reach each of them, or are reduced over them."""
    return size * (gpus - 1) / gpus / LINK
