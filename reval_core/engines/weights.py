"""A policy's weights on their way to an engine: the files that vLLM loads a model from, adapters merged.

Where the machine has a file system in memory, an engine on the same machine is handed them there.
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

_FILE = "model.safetensors"


def handover_directory(model: PreTrainedModel, dtype: torch.dtype) -> Path:
    """A new folder for the weights of `model`: in memory if they fit there, else on the disk.

    What processes that were killed have left there is deleted.
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
    """Make `folder` a model for vLLM: config and weights, in `dtype`. `code` is a folder with the model's own code.

    seed: of the thresholds that float32 weights are rounded to bfloat16 by.
    The weights are in place whole or not at all. Tokens go in and tokens come out, so there is no tokenizer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)
    for source in code.glob("*.py") if code is not None else ():
        shutil.copy(source, directory)
    partial = directory / f"{_FILE}{PARTIAL}"
    save_file(dict(policy_tensors(model, seed, dtype)), partial, {"format": "pt"})
    partial.replace(directory / _FILE)


def drop_weights(directory: Path) -> None:
    """Delete the weights that an engine has read."""
    (directory / _FILE).unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@torch.no_grad()
def policy_tensors(model: PreTrainedModel, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """A policy's weights as an engine gets them: each once, also tied ones, with adapters merged (W + s·B·A).

    A learner's bfloat16 copy goes as it is. Float32 weights, and merged ones, are rounded to bfloat16 as that copy
    is, by the thresholds of `seed`.
    """
    layers: dict[str, Any] = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        weight, public = parameter, name.replace(".base_layer.", ".")
        if public != name and public.endswith(".weight"):
            layer = layers[public.removesuffix(".weight")]
            with in_float32(layer):  # the adapters' product is not rounded before it is added
                weight = parameter + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        if dtype == torch.bfloat16 and weight.dtype == torch.float32:
            weight = low_precision(weight, seed, public)
        yield public, weight.to(device="cpu", dtype=dtype).contiguous()
