"""The policy that is evaluated: a model as it is, or that of any round of a training run."""

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
"""What lies beside the model in a checkpoint."""


@dataclass(frozen=True)
class ModelSource:
    """A policy by name, and how to get it."""

    name: str
    """The model's or the run's."""
    source: str
    """The folder that it comes from."""
    round: int
    """The rounds of training behind it; 0 for a model as it is."""
    identity: str
    """A model's is the digest of its files, a run's policy's the one that the run recorded."""
    model: Model
    """Where its tokenizer and its shape are read."""
    load: Callable[[Model], PreTrainedModel]
    """Reads its weights, given `model`, or makes them again."""
    habits: dict[str, Any]
    """The protocol's settings that a training run has chosen already."""
    seed: int = 0
    """Of the thresholds that its weights are rounded to bfloat16 by: the run's."""


def find_model_source(source: str, round: int | None = None) -> ModelSource:
    """The policy in a run's folder (after `round` rounds, or its last), a model's folder, or a model on the hub.

    Raises InputError if there is none.
    """
    directory = RunDirectory(Path(source))
    if os.path.exists(directory.config):
        return _of_run(directory, round)
    if round is not None:
        raise InputError(f"{source}: --round: is no run folder (it has no config.yaml), so it has no rounds")
    return _of_model(source)


def _of_model(source: str) -> ModelSource:
    here = os.path.isdir(source)  # of a name that is too long for a path it is False
    directory = Path(source).resolve() if here else _from_hub(source)
    files = sorted(
        path
        for path in directory.iterdir()
        if path.suffix in _READ_BY_TRANSFORMERS and path.name not in _OF_THE_LEARNER
    )
    if not (directory / "config.json").is_file():
        raise InputError(f"{source}: holds neither a run (config.yaml) nor a model (config.json); give one of both")

    def load(model: Model) -> PreTrainedModel:
        from reval_core.model.loading import load_model

        return load_model(directory, model)

    identity = digest([_content(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files])
    name = directory.name if here else Path(source).name
    return ModelSource(name, str(directory), 0, identity, Model(path=str(directory)), load, habits={})


@cache
def _content(path: Path, written: int, size: int) -> tuple[str, str]:
    """A file's name and digest, which of large weights takes a while."""
    return path.name, file_digest(path)


def _from_hub(source: str) -> Path:
    """The folder that a model on the hub is kept in here, fetched if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in _READ_BY_TRANSFORMERS]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{source}: is no folder here, and no model that the hub gives ({str(error).strip().splitlines()[0]})"
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
        _habits(config),
        config.seed,
    )


def _policy_of_run(directory: RunDirectory, config: Config, policy: Policy) -> PreTrainedModel:
    from reval_core.learning.draws import DrawReader
    from reval_core.pipeline.environment import fix_machine
    from reval_core.pipeline.reconstruction import replay

    if not directory.checkpoint(policy.round).exists():
        fix_machine(directory, config)  # a replay gives the same weights only where it learns the same
    return replay(directory, config, DrawReader(directory), policy).model


def _habits(config: Config) -> dict[str, Any]:
    """How a run asks its own held-out problems."""
    values = config.model_dump(mode="json")
    habits = {
        "seed": config.seed,
        "precision": config.learner.precision,
        "benchmarks": values["problems"]["held_out"],
        "prompt": values["problems"]["prompt"],
        "verification": values["verification"],
        "reward": {name: value for name, value in values["reward"].items() if name != "overlong"},
    }
    if isinstance(config.rollouts, Rollouts):
        habits |= {name: values["rollouts"][name] for name in ("temperature", "max_tokens", "stop")}
    return {name: value for name, value in habits.items() if value not in (None, [])}
