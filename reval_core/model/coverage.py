"""Check that stored weights match an architecture: every parameter exactly once, in its shape, and nothing else.

The check runs transformers' own loader, since it renames keys, fuses layers and ties heads: the loader loads meta
tensors into a model on the meta device and reports missing, unexpected and mismatched keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from reval_core.errors import InputError
from reval_core.model.weight_files import StoredTensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_FLOATS = {"F64", "F32", "F16", "BF16"}


def bare_model(
    config: PreTrainedConfig, trust_remote_code: bool = False, attention: str | None = None
) -> PreTrainedModel:
    """Build a model of this architecture on the meta device: shapes without weights.

    Raises:
        ImportError, ValueError: From transformers, or any exception of the model's own code.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code, attn_implementation=attention
        )


def check_coverage(source: str, model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> None:
    """Check that `stored` are the weights of a model like `model`.

    Args:
        source: The model's directory or name, for messages.
        model: A model on the meta device.
        stored: The stored tensors by name.

    Raises:
        InputError: Parameters are quantized, missing, unexpected or of another shape; names them.
    """
    for name, tensor in stored.items():
        if tensor.dtype not in _FLOATS and name.endswith("weight"):
            raise InputError(
                f"{tensor.file}: model.path: {name} is stored as {tensor.dtype}: the weights are quantized, and "
                "training needs full precision; use the unquantized model"
            )
    tensors = {name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()}
    with quiet_transformers():
        try:
            _, info = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=tensors,
                device_map={"": "meta"},
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the loading information lists all of them
            )
        except RuntimeError as error:
            refuse_unmerged(source, error)
            raise
    refuse_mismatches(source, model, info)


def refuse_unmerged(source: str, error: RuntimeError) -> None:
    """Raise InputError if transformers could not merge weights into larger ones. It does not say which."""
    if "automatic conversion of the weights" not in str(error):
        return
    raise InputError(
        f"{source}: model.path: some of the weights cannot be merged as config.json describes: one of several "
        "experts is missing or of another shape; save the whole model again, or use the right config.json"
    ) from error


def refuse_mismatches(source: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Raise InputError if transformers' loading information reports parameters that the weights do not match.

    transformers itself would initialise them at random and only log it.
    """
    mismatches = []
    if info["missing_keys"]:
        mismatches.append(f"missing {_some(info['missing_keys'])}")
    if info["unexpected_keys"]:
        mismatches.append(f"unexpected {_some(info['unexpected_keys'])}")
    if info["mismatched_keys"]:
        shapes = [
            f"{name} ({_shape(found)} in the weights, {_shape(expected)} by config.json)"
            for name, found, expected in info["mismatched_keys"]
        ]
        mismatches.append(f"of another shape {_some(shapes)}")
    if not mismatches:
        return
    named = [name for name in model.config.architectures or [] if name != type(model).__name__]
    saved_as = f" (config.json says {', '.join(named)})" if named else ""
    remedy = (
        "save the causal language model itself, whole, with save_pretrained"
        if info["missing_keys"] or info["unexpected_keys"]
        else "use the config.json that belongs to the weights"
    )
    raise InputError(
        f"{source}: model.path: the weights are not those of {type(model).__name__}{saved_as}: "
        f"{'; '.join(mismatches)}; {remedy}"
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' tables and progress bars: what they report is refused in one line."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:2])
    return f"{shown} and {len(names) - 2} more" if len(names) > 2 else shown


def _shape(shape: Collection[int]) -> str:
    return " × ".join(map(str, shape)) or "a number"
