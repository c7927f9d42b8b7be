"""Rejects settings and models that an engine cannot run, which vLLM itself would only report after minutes."""

from __future__ import annotations

import torch

from reval_core.config import EngineSettings, Model, VllmEngine, VllmServerEngine
from reval_core.engines.choice import choose, cpu_attention_takes, cpu_heads
from reval_core.engines.placement import places
from reval_core.engines.weight_source import check_offer
from reval_core.errors import InputError
from reval_core.model.loading import architecture, context_length, head_size

_NO_FLOAT16 = {"gemma2", "gemma3", "gemma3_text", "glm4"}
"""The model types that vLLM 0.32 rejects in float16 because they overflow (its config/model.py)."""

_NO_BFLOAT16_BELOW = (8, 0)
"""The minimum compute capability with bfloat16 support."""


def check_engine(model: Model, engine: EngineSettings) -> None:
    """Check that the engine can run the model on this machine.

    Raises:
        InputError: It cannot; the message names the setting.
    """
    if choose(model, engine).kind == "vllm":
        settings = engine if isinstance(engine, VllmEngine) else VllmEngine(kind="vllm")
        _check_context(model, settings)
        _check_dtype(model, settings)
        places(settings)
        _check_heads(model, settings)
    if isinstance(engine, VllmServerEngine) and engine.weights_url is not None:
        check_offer(engine.weights_url)


def engine_context(model: Model, engine: EngineSettings) -> int | None:
    """The maximum number of tokens of a prompt and its response for the model and its engine.

    Returns:
        The limit, or None if it is unknown. The limit that a vLLM server was started with is not known.
    """
    known = context_length(model)
    if choose(model, engine).kind != "vllm":
        return known
    if isinstance(engine, VllmEngine) and engine.max_model_len is not None:
        return engine.max_model_len
    config = architecture(model)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        return getattr(config, "original_max_position_embeddings", None) or known  # as vLLM does
    return known


def _check_context(model: Model, settings: VllmEngine) -> None:
    context = context_length(model)
    if context is not None and settings.max_model_len is not None and settings.max_model_len > context:
        raise InputError(
            f"engine.max_model_len: {settings.max_model_len} exceeds the model's context length of {context}; "
            f"set {context} or less"
        )


def _check_dtype(model: Model, settings: VllmEngine) -> None:
    kind = architecture(model).model_type
    if settings.dtype == "float16" and kind in _NO_FLOAT16:
        raise InputError(f"engine.dtype: vLLM does not support {kind} in float16; set bfloat16 or float32")
    if settings.dtype == "bfloat16" and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability < _NO_BFLOAT16_BELOW:
            raise InputError(
                f"engine.dtype: this GPU (compute capability {capability[0]}.{capability[1]}) does not support "
                "bfloat16; set float16 or float32"
            )


def _check_heads(model: Model, settings: VllmEngine) -> None:
    parts, gpus = settings.tensor_parallel_size, torch.cuda.device_count()
    if parts > max(gpus, 1):
        raise InputError(f"engine.tensor_parallel_size: {parts} exceeds the number of GPUs ({gpus})")
    heads = getattr(architecture(model), "num_attention_heads", None)
    if heads and heads % parts:
        raise InputError(
            f"engine.tensor_parallel_size: {parts} does not divide the model's {heads} attention heads"
        )
    if not torch.cuda.is_available() and not cpu_attention_takes(model):
        raise InputError(
            f"engine.kind: vLLM on a CPU does not support this model's head size of {head_size(model)} "
            f"(supported: {cpu_heads()}); set engine.kind: transformers"
        )
