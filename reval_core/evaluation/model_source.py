"""The evaluated policy: a pretrained model, or the policy of any round of a training run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval_core.atomic_files import digest, file_digest
from reval_core.config import Config, Model, Rollouts
from reval_core.config.loader import load_config
from reval_core.errors import InputError
from reval_core.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reval_core.pipeline.reconstruction import Policy

_READ_BY_TRANSFORMERS = {".safetensors", ".json", ".model", ".txt", ".jinja", ".py"}


_OF_THE_LEARNER = {"optimizer.safetensors", "learner.json", "checksums.json"}
"""Files of a checkpoint that are not part of the model."""


@dataclass(frozen=True)
class ModelSource:
    """A policy and how to load it."""

    name: str
    """Name of the model or of the run."""
    source: str
    """The directory that it comes from."""
    round: int
    """Completed rounds of training; 0 for a pretrained model."""
    identity: str
    """For a model the digest of its files, for a policy of a run the digest that the run recorded."""
    model: Model
    """Where its tokenizer and its architecture are read."""
    load: Callable[[Model], PreTrainedModel]
    """Loads the weights, given `model`, or reconstructs them."""
    protocol_defaults: dict[str, Any]
    """Default protocol settings, taken from the config of a training run."""
    seed: int = 0
    """Seed of the thresholds for rounding the weights to bfloat16: the run's."""


def find_model_source(source: str, round: int | None = None) -> ModelSource:
    """Find a policy in a run directory, a model directory, or on the Hugging Face Hub.

    Args:
        source: Path of a run or a model, or the name of a model on the hub.
        round: Round of a run's policy; by default its latest.

    Raises:
        InputError: There is no such policy.
    """
    directory = RunDirectory(Path(source))
    if os.path.exists(directory.config):
        return _of_run(directory, round)
    if round is not None:
        raise InputError(f"{source}: --round: is not a run directory (it has no config.yaml), so it has no rounds")
    return _of_model(source)


def _of_model(source: str) -> ModelSource:
    here = os.path.isdir(source)  # False where the name is too long for a path
    directory = Path(source).resolve() if here else _from_hub(source)
    files = sorted(
        path
        for path in directory.iterdir()
        if path.suffix in _READ_BY_TRANSFORMERS and path.name not in _OF_THE_LEARNER
    )
    if not (directory / "config.json").is_file():
        raise InputError(f"{source}: holds neither a run (config.yaml) nor a model (config.json); give one of them")

    def load(model: Model) -> PreTrainedModel:
        from reval_core.model.loading import load_model

        return load_model(directory, model)

    identity = digest([_content(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files])
    name = directory.name if here else Path(source).name
    return ModelSource(name, str(directory), 0, identity, Model(path=str(directory)), load, protocol_defaults={})


@cache
def _content(path: Path, written: int, size: int) -> tuple[str, str]:
    """Return a file's name and digest. Cached: hashing large weights takes a while."""
    return path.name, file_digest(path)


def _from_hub(source: str) -> Path:
    """Return the local directory of a model on the hub, downloading it if necessary."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in _READ_BY_TRANSFORMERS]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{source}: is neither a directory nor a model on the hub ({str(error).strip().splitlines()[0]})"
        ) from error


def _of_run(directory: RunDirectory, round: int | None) -> ModelSource:
    from reval_core.pipeline.reconstruction import newest_policy, recorded_policy

    config = load_config(directory.config)
    newest = newest_policy(directory)
    policy = newest if round is None else recorded_policy(directory, round)
    if newest is None or policy is None:
        reached = "no policy yet" if newest is None else f"policies of rounds 0 to {newest.round}"
        raise InputError(f"{directory.path}: has {reached}; give --round one of those")

    return ModelSource(
        directory.name,
        str(directory.path),
        policy.round,
        policy.identity,
        config.model,
        lambda model: _policy_of_run(directory, config, policy),
        _protocol_defaults(config),
        config.seed,
    )


def _policy_of_run(directory: RunDirectory, config: Config, policy: Policy) -> PreTrainedModel:
    from reval_core.learning.draws import DrawReader
    from reval_core.pipeline.environment import fix_machine
    from reval_core.pipeline.reconstruction import reconstruct

    if not directory.checkpoint(policy.round).exists():
        fix_machine(directory, config)  # reconstruction gives the same weights only under the same settings
    return reconstruct(directory, config, DrawReader(directory), policy).model


def _protocol_defaults(config: Config) -> dict[str, Any]:
    """Return the settings with which a run evaluates its own held-out problems."""
    values = config.model_dump(mode="json")
    defaults = {
        "seed": config.seed,
        "precision": config.learner.precision,
        "benchmarks": values["problems"]["held_out"],
        "prompt": values["problems"]["prompt"],
        "verification": values["verification"],
        "reward": {name: value for name, value in values["reward"].items() if name != "overlong"},
    }
    if isinstance(config.rollouts, Rollouts):
        defaults |= {name: values["rollouts"][name] for name in ("temperature", "max_tokens", "stop")}
    return {name: value for name, value in defaults.items() if value not in (None, [])}
