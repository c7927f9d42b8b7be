"""Estimates of the GPU memory of vLLM, in bytes."""

from __future__ import annotations

from reval_core.config import Config, Rollouts, VllmEngine
from reval_core.planning.model_sizes import FLOAT, HALF, Sizes

ENGINE_WORK = 2_000_000_000
"""Assumed memory of vLLM's buffers and captured graphs, in addition to weights and cache."""

PROMPT = 1024
"""Assumed tokens of a prompt if `engine.max_model_len` is not set."""


def responses_at_once(config: Config, sizes: Sizes, gpu_bytes: int) -> tuple[int, int] | None:
    """The number of full-length responses that fit vLLM's KV cache, and that length in tokens.

    None for other engines.
    """
    engine = config.engine
    if not isinstance(engine, VllmEngine) or not isinstance(config.rollouts, Rollouts):
        return None
    length = engine.max_model_len or longest(config.rollouts, sizes)
    token = token_bytes(engine, sizes)
    at_most = engine.max_num_seqs or most_sequences(gpu_bytes)
    return min(at_most, max(0, cache_bytes(engine, sizes, gpu_bytes)) // (token * length)), length


def engine_parts(engine: VllmEngine, sizes: Sizes, gpu_bytes: int) -> dict[str, int]:
    """The memory of vLLM while it is awake."""
    return {
        "engine": weight_bytes(engine, sizes) + ENGINE_WORK,
        "cache": max(0, cache_bytes(engine, sizes, gpu_bytes)),
    }


def most_sequences(gpu_bytes: int) -> int:
    """Default `max_num_seqs` of vLLM 0.32 (its engine/arg_utils.py), which is 256 on any A100."""
    return 1024 if gpu_bytes >= 70 * 2**30 else 256


def cache_bytes(engine: VllmEngine, sizes: Sizes, gpu_bytes: int) -> int:
    """Bytes of vLLM's KV cache on one GPU; not positive if its fraction of the memory has no room for one."""
    if engine.kv_cache_gib is not None:
        return int(engine.kv_cache_gib * 2**30)
    return int(engine.gpu_memory_utilization * gpu_bytes) - weight_bytes(engine, sizes) - ENGINE_WORK


def token_bytes(engine: VllmEngine, sizes: Sizes) -> int:
    """Bytes of the keys and values of one token on one GPU."""
    return sizes.cache_a_token(number_bytes(engine)) // engine.tensor_parallel_size


def weight_bytes(engine: VllmEngine, sizes: Sizes) -> int:
    """Bytes of vLLM's weights on one GPU."""
    return number_bytes(engine) * sizes.parameters // engine.tensor_parallel_size


def number_bytes(engine: VllmEngine) -> int:
    """Bytes of a number in the engine's type."""
    return FLOAT if engine.dtype == "float32" else HALF


def longest(rollouts: Rollouts, sizes: Sizes) -> int:
    """Maximum tokens of a prompt and its response."""
    length = rollouts.max_tokens + PROMPT
    return length if sizes.context is None else min(length, sizes.context)
