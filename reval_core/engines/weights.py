"""Publishes a policy's weights to an engine: model files that vLLM loads, with LoRA adapters merged.

An engine on the same machine reads them from a file system in memory, where there is one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from reval_core.atomic_files import PARTIAL
from reval_core.model.low_precision import in_float32, low_precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MEMORY = Path("/dev/shm")

_PREFIX = "reval-weights-"

WEIGHTS = "model.safetensors"
"""The name of the file with the weights."""


def handover_directory(model: PreTrainedModel, dtype: torch.dtype) -> Path:
    """Create a directory for the weights of `model`: in memory if they fit, otherwise on disk.

    Directories that were left behind by killed processes are deleted.
    """
    for left in [*_MEMORY.glob(f"{_PREFIX}*"), *Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")]:
        if not _alive(int(left.name.split("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    needed = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    fits = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 1.5 * needed
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_MEMORY if fits else None))


def write_weights(
    directory: Path, model: PreTrainedModel, seed: int, dtype: torch.dtype, code: Path | None = None
) -> None:
    """Write a model directory for vLLM: config and weights. The weights file is written atomically.

    There is no tokenizer, because requests and responses consist of token ids.

    Args:
        directory: The directory to write to.
        model: The policy.
        seed: The seed of the thresholds that round float32 weights to bfloat16.
        dtype: The data type of the weights.
        code: A directory with the model's custom code, which is copied.
    """
    write_config(directory, model, code)
    partial = directory / f"{WEIGHTS}{PARTIAL}"
    save_file(dict(policy_tensors(model, seed, dtype)), partial, {"format": "pt"})
    partial.replace(directory / WEIGHTS)


def write_config(directory: Path, model: PreTrainedModel, code: Path | None) -> None:
    """Write a model's config, with its custom code from the directory `code`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)
    for source in code.glob("*.py") if code is not None else ():
        shutil.copy(source, directory)


def drop_weights(directory: Path) -> None:
    """Delete weights that an engine has loaded."""
    (directory / WEIGHTS).unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        pass
    return True


@torch.no_grad()
def policy_tensors(model: PreTrainedModel, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """A policy's weights as an engine loads them: adapters merged (W + s·B·A), tied weights only once.

    Weights of a learner's bfloat16 copy are unchanged. Float32 weights and merged weights are rounded to bfloat16
    in the same way as that copy.

    Args:
        model: The policy.
        seed: The seed of the rounding thresholds.
        dtype: The data type of the result.

    Yields:
        The name and the tensor of each weight, on the CPU.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        weight, public = parameter, name.replace(".base_layer.", ".")
        if public != name and public.endswith(".weight"):
            layer = layers[public.removesuffix(".weight")]
            with in_float32(layer):  # so that the adapters' product is not rounded before the sum
                weight = parameter + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        if dtype == torch.bfloat16 and weight.dtype == torch.float32:
            weight = low_precision(weight, seed, public)
        yield public, weight.to(device="cpu", dtype=dtype).contiguous()
