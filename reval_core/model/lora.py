"""LoRA adapters: add them to a model with frozen weights, save, load and swap them.

Newly added adapters change nothing, so the base model is the initial policy and its own reference. Another
reference is another set of adapters in the same model: there is never a second copy of the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from reval_core.config import Lora
from reval_core.errors import InputError
from reval_core.model.low_precision import assign

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_FILE = "adapter_model.safetensors"


def check_peft() -> None:
    """Raise InputError if peft is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError("model.lora: needs peft; install it with pip install 'reval-rl[lora]'") from error


def add_adapters(model: PreTrainedModel, settings: Lora, seed: int) -> None:
    """Add new adapters, initialised from `seed`, and freeze everything else. The model's outputs do not change.

    Raises:
        InputError: No layer matches `settings.targets`, or the head does.
    """
    from peft import LoraConfig

    targets = settings.targets[0] if settings.targets == ("all-linear",) else list(settings.targets)
    lora_config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model.add_adapter(lora_config)
        except ValueError as error:
            raise InputError(f"model.lora.targets: {str(error).splitlines()[0]}") from error
    if hasattr(model.get_output_embeddings(), "base_layer"):
        raise InputError(
            "model.lora.targets: the head cannot have adapters: values are computed from its own weights"
        )
    model.eval()


def save_adapters(model: PreTrainedModel, directory: Path) -> None:
    """Write the adapters in peft's format, so that peft, transformers and vLLM load them on top of the base."""
    model.peft_config["default"].save_pretrained(directory)
    save_file({_public(name): tensor.contiguous() for name, tensor in _adapters(model).items()}, directory / _FILE)


def load_adapters(model: PreTrainedModel, directory: Path, seed: int) -> None:
    """Load the adapters of a checkpoint into a model that has adapters of the same shape.

    Args:
        model: The model. If it is a bfloat16 copy, it receives the copy of the adapters.
        directory: The checkpoint.
        seed: The seed of the rounding thresholds of the copy.
    """
    saved = load_file(directory / _FILE)
    for name, tensor in _adapters(model).items():
        assign(tensor, name, saved[_public(name)], seed)


@contextmanager
def swapped_adapters(model: PreTrainedModel, directory: Path, seed: int) -> Iterator[PreTrainedModel]:
    """`model` with the adapters of another checkpoint, inside the context."""
    own = {name: tensor.clone() for name, tensor in _adapters(model).items()}
    try:
        load_adapters(model, directory, seed)
        yield model
    finally:
        with torch.no_grad():
            for name, tensor in _adapters(model).items():
                tensor.copy_(own[name])


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether adapters are trained rather than the full weights."""
    return getattr(model, "_hf_peft_config_loaded", False)


def _adapters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}


def _public(name: str) -> str:
    """peft's name of a tensor on disk: without the name of the adapter."""
    return "base_model.model." + name.replace(".default.", ".")
