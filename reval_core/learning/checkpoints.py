"""Checkpoints: the weights, the optimizer state and the identity of a policy, published as one directory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reval_core.atomic_files import check_directory, publish_directory, read_json
from reval_core.config import Config
from reval_core.errors import CorruptData, InputError
from reval_core.learning.learner import Learner
from reval_core.model.loading import load_model, policy_digest, save_model
from reval_core.model.lora import add_adapters, has_adapters, load_adapters, save_adapters
from reval_core.model.weight_files import stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from reval_core.storage.tables import Manifest


def save_checkpoint(directory: Path, learner: Learner, tokenizer: PreTrainedTokenizerBase) -> str:
    """Publish the learner's state to `directory`, with the weights in float32.

    transformers loads the directory as a model or, with LoRA, as adapters of the model in `RunDirectory.base`.

    Returns:
        The digest of the float32 weights.
    """
    content = learner.content()
    state = {
        "policy": learner.policy,
        "content": content,
        "updates_done": learner.updates_done,
        "gradient_norms": list(learner.guard.norms),
    }
    with learner.masters() as model:
        _publish(directory, model, tokenizer, _optimizer_tensors(learner), state)
    return content


def save_first_checkpoint(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Publish the initial policy, and return its identity: the digest of its weights."""
    content = policy_digest(model)
    state = {"policy": content, "content": content, "updates_done": 0, "gradient_norms": []}
    _publish(directory, model, tokenizer, {}, state)
    return content


def export_policy(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Publish only a policy to `directory`: a model that transformers loads or, with LoRA, the adapters."""
    publish_directory(directory, lambda partial: _save_policy(partial, model, tokenizer))


def load_learner(checkpoint: Path, base: Path, run: Config) -> Learner:
    """Load the learner that a checkpoint was saved from.

    Args:
        checkpoint: The directory of the checkpoint.
        base: The directory of the model that the adapters belong to; read only with LoRA.
        run: The config of the run.

    Raises:
        CorruptData: The checkpoint or the base is not what was saved; the message names the file.
    """
    check_directory(checkpoint)
    settings = run.model
    if settings.lora is None:
        _check_weights(checkpoint)
        model = load_model(checkpoint, settings)
    else:
        check_directory(base)
        model = load_model(base, settings)
        add_adapters(model, settings.lora, run.seed)
        load_adapters(model, checkpoint, run.seed)
    learner = Learner.of(model, run, checkpoint_state(checkpoint)["policy"])
    restore_optimizer(checkpoint, learner)
    return learner


def _check_weights(checkpoint: Path) -> None:
    """Raise CorruptData for unreadable weights, without the advice for models that a user supplies."""
    try:
        stored_tensors(checkpoint)
    except InputError as error:
        reason, _, _ = str(error).replace(": model.path: ", ": ").rpartition("; ")
        raise CorruptData(reason) from error


def checkpoint_state(directory: Path) -> dict[str, Any]:
    """Read the identity (`policy`), the digest of the weights (`content`) and the counters of a checkpoint.

    Raises:
        CorruptData: `directory` is not a checkpoint.
    """
    return read_json(directory / "learner.json")


def restore_optimizer(directory: Path, learner: Learner) -> None:
    """Restore the optimizer, counters and identity of a learner whose model has the checkpoint's weights.

    Raises:
        CorruptData: The weights are not those that the checkpoint recorded, or the optimizer state does not fit.
    """
    state = checkpoint_state(directory)
    if learner.content() != state["content"]:
        raise CorruptData(f"{directory}: the weights are not those that were saved")
    tensors = _read_optimizer(directory / "optimizer.safetensors")
    for name, parameter in learner.trained().items():
        saved = {
            key: tensors[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in tensors
        }
        if any(value.shape not in (parameter.shape, ()) for value in saved.values()):
            raise CorruptData(f"{directory}: the optimizer state of {name} differs in shape from the parameter")
        if saved:
            learner.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in saved.items()}
    learner.updates_done = state["updates_done"]
    learner.guard.norms.extend(state["gradient_norms"])
    learner.policy = state["policy"]


def _read_optimizer(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CorruptData(f"{file}: cannot be read ({error})") from error


def retained_checkpoints(manifests: Sequence[Manifest], config: Config) -> set[int]:
    """The rounds whose checkpoints a run with these manifests keeps.

    They are the initial policy, the reference, the policy with the best evaluation, and the newest
    `checkpoints.keep`.
    """
    saved, best = [0], (-math.inf, 0)
    for manifest in manifests:
        if manifest.stage == "checkpoint":
            saved.append(manifest.round)
        elif manifest.stage == "evaluation":
            best = max(best, (selection_metric(manifest), manifest.round))
    newest = sorted(saved)[-config.checkpoints.keep :]
    return {0, reference_round(manifests, config), *newest, *({best[1]} & set(saved))}


def selection_metric(evaluation: Manifest) -> float:
    """The quality of an evaluated policy, higher is better: its accuracy or, without an engine, −mean |Δ|."""
    if "accuracy" in evaluation.info:
        accuracy: float = evaluation.info["accuracy"]
        return accuracy
    distance: float | None = evaluation.info["delta_abs"]
    return 0.0 if distance is None else -distance


def reference_round(manifests: Sequence[Manifest], config: Config) -> int:
    """The round whose policy is the current reference. Its checkpoint is saved just before the reset."""
    saved = [manifest.round for manifest in manifests if manifest.stage == "checkpoint"]
    left = residuals_left(manifests)
    return max((number for number in saved if config.reference.reset_after(number, left.get(number))), default=0)


def residuals_left(manifests: Iterable[Manifest]) -> dict[int, float | None]:
    """The share of the residual left at the start of each round, which resets may depend on."""
    return {one.round: one.info.get("residual_left") for one in manifests if one.stage == "sampling"}


def checkpoint_rounds(directory: Path) -> list[int]:
    """The rounds that have a checkpoint under `directory`."""
    return [int(path.name.split("=")[1]) for path in directory.glob("round=?????") if path.is_dir()]


def _publish(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
) -> None:
    def write(partial: Path) -> None:
        _save_policy(partial, model, tokenizer)
        save_file(optimizer, partial / "optimizer.safetensors")
        (partial / "learner.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    publish_directory(directory, write)


def _save_policy(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if has_adapters(model):
        save_adapters(model, directory)
    else:
        save_model(model, tokenizer, directory)


def _optimizer_tensors(learner: Learner) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in learner.trained().items()}
    return {
        f"{names[parameter]}/{key}": value.detach().cpu().contiguous()  # a GPU has no memory for a second copy
        for parameter, state in learner.optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
