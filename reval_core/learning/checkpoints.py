"""Checkpoints: the weights, the optimizer state and the identity of a policy, published as one directory."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from reval_core import launch
from reval_core.atomic_files import check_directory, publish_directory, read_json
from reval_core.config import Config
from reval_core.errors import CorruptData, InputError, first_line
from reval_core.learning import processes
from reval_core.learning.learner import Learner
from reval_core.model.loading import load_model, policy_digest, save_model
from reval_core.model.lora import add_adapters, has_adapters, load_adapters, save_adapters
from reval_core.model.weight_files import stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from reval_core.storage.tables import Manifest


_OPTIMIZER = "optimizer.safetensors"

_SHARDS = "optimizer"
"""The directory of the optimizer's state where it is sharded: a file per process."""


def save_checkpoint(
    directory: Path,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    shards: Callable[[Path], AbstractContextManager[None]] = lambda partial: nullcontext(),
) -> str:
    """Publish the learner's state to `directory`, with the weights in float32. Called by the first process.

    transformers loads the directory as a model or, with LoRA, as adapters of the model in `RunDirectory.base`.

    Args:
        directory: The final directory.
        learner: The learner.
        tokenizer: Saved with the weights.
        shards: With a sharded learner: called with the temporary directory; inside the context all other processes
            call `save_shards` with it.

    Returns:
        The digest of the float32 weights.
    """
    state: dict[str, Any] = {
        "policy": learner.policy,
        "updates_done": learner.updates_done,
        "gradient_norms": list(learner.guard.norms),
        "processes": learner.first_processes,
    }

    def write(partial: Path) -> None:
        with shards(partial):
            state["content"] = save_shards(partial, learner, tokenizer)
        _write_state(partial, state)

    publish_directory(directory, write)
    return str(state["content"])


def save_shards(directory: Path, learner: Learner, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """Write this process's part of a checkpoint: the first one's is the model. Returns the digest of the model.

    With a sharded learner every process must call it.
    """
    content = ""
    with learner.masters() as model:
        if tokenizer is not None:
            content = policy_digest(model)
            _save_policy(directory, model, tokenizer)
    tensors = _optimizer_tensors(learner)
    if learner.is_sharded:
        writer = HuggingFaceStorageWriter(str(directory / _SHARDS), save_distributed=True)
        distributed_checkpoint.save(tensors, storage_writer=writer, process_group=processes.control())
    else:
        # On the CPU one by one: a GPU has no memory for a second copy.
        save_file({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, directory / _OPTIMIZER)
    return content


def save_first_checkpoint(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Publish the initial policy, and return its identity: the digest of its weights."""
    content = policy_digest(model)
    state = {"policy": content, "content": content, "updates_done": 0, "gradient_norms": []}

    def write(partial: Path) -> None:
        _save_policy(partial, model, tokenizer)
        save_file({}, partial / _OPTIMIZER)
        _write_state(partial, {**state, "processes": launch.count()})

    publish_directory(directory, write)
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
    state = checkpoint_state(checkpoint)
    learner = Learner.of(model, run, state["policy"], state.get("processes"))
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
    _restore_moments(directory, learner)
    learner.updates_done = state["updates_done"]
    learner.guard.norms.extend(state["gradient_norms"])
    learner.policy = state["policy"]


def _restore_moments(directory: Path, learner: Learner) -> None:
    """Read the optimizer's state, or this process's shards of it. Any number of processes may have saved it."""
    in_shards = (directory / _SHARDS).exists()
    reader = HuggingFaceStorageReader(str(directory / _SHARDS if in_shards else directory))
    group = processes.control() if learner.is_sharded else None
    try:
        states = _empty_states(directory, learner, reader.read_metadata().state_dict_metadata)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it loads in a single process
            distributed_checkpoint.load(
                _named(learner, states), storage_reader=reader, process_group=group, no_dist=group is None
            )
    except (OSError, SafetensorError, CheckpointException) as error:
        corrupt = directory / (_SHARDS if in_shards else _OPTIMIZER)
        raise CorruptData(f"{corrupt}: cannot be read as the optimizer's state ({first_line(error)})") from error
    for name, state in states.items():
        learner.optimizer.state[learner.weights.masters[name]] = state


def _empty_states(directory: Path, learner: Learner, saved: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Tensors for the saved state of each weight. Raises CorruptData if it is not the state of these weights."""
    states: dict[str, dict[str, Tensor]] = {}
    for name, master in learner.weights.masters.items():
        empty = {
            "step": master.new_zeros(()),
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
        }
        for key in [key for key in empty if f"{name}/{key}" in saved]:
            if tuple(saved[f"{name}/{key}"].size) not in (tuple(learner.weights.parts[name].shape), ()):
                raise CorruptData(f"{directory}: the optimizer state of {name} differs in shape from the parameter")
            states.setdefault(name, {})[key] = empty[key]
    return states


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


def _write_state(directory: Path, state: dict[str, Any]) -> None:
    (directory / "learner.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _save_policy(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if has_adapters(model):
        save_adapters(model, directory)
    else:
        save_model(model, tokenizer, directory)


def _optimizer_tensors(learner: Learner) -> dict[str, Tensor]:
    names = {master: name for name, master in learner.weights.masters.items()}
    states = {names[master]: state for master, state in learner.optimizer.state.items()}
    return _named(learner, states)


def _named(learner: Learner, states: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The optimizer's state by the names in the file."""
    return {
        f"{name}/{key}": value if key == "step" else learner.weights.as_saved(name, value)
        for name, state in states.items()
        for key, value in state.items()
    }
