"""The policy that is evaluated: a model as it is, or that of any round of a training run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval_core.config import Config, Model, Rollouts
from reval_core.errors import InputError
from reval_core.files import digest, file_digest
from reval_core.loading import load_config
from reval_core.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reval_core.replay import Policy

_READ_BY_TRANSFORMERS = {".safetensors", ".json", ".model", ".txt", ".jinja", ".py"}


_OF_THE_LEARNER = {"optimizer.safetensors", "learner.json", "checksums.json"}
"""What lies beside the model in a checkpoint."""


@dataclass(frozen=True)
class Subject:
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


def find_subject(source: str, round: int | None = None) -> Subject:
    """The policy in a run's folder (after `round` rounds, or its last), a model's folder, or a model on the hub.

    Raises InputError if there is none.
    """
    folder = RunFolder(Path(source))
    if os.path.exists(folder.config):
        return _of_run(folder, round)
    if round is not None:
        raise InputError(f"{source}: --round: is no run folder (it has no config.yaml), so it has no rounds")
    return _of_model(source)


def _of_model(source: str) -> Subject:
    here = os.path.isdir(source)  # of a name that is too long for a path it is False
    folder = Path(source).resolve() if here else _from_hub(source)
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in _READ_BY_TRANSFORMERS and path.name not in _OF_THE_LEARNER
    )
    if not (folder / "config.json").is_file():
        raise InputError(f"{source}: holds neither a run (config.yaml) nor a model (config.json); give one of both")

    def load(model: Model) -> PreTrainedModel:
        from reval_core.models import load_model

        return load_model(folder, model)

    identity = digest([_content(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files])
    name = folder.name if here else Path(source).name
    return Subject(name, str(folder), 0, identity, Model(path=str(folder)), load, habits={})


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


def _of_run(folder: RunFolder, round: int | None) -> Subject:
    from reval_core.replay import newest_policy, recorded_policy

    config = load_config(folder.config)
    newest = newest_policy(folder)
    policy = newest if round is None else recorded_policy(folder, round)
    if newest is None or policy is None:
        reached = "no policy yet" if newest is None else f"policies of rounds 0 to {newest.round}"
        raise InputError(f"{folder.path}: has {reached}; give --round one of those")

    return Subject(
        folder.name,
        str(folder.path),
        policy.round,
        policy.identity,
        config.model,
        lambda model: _policy_of_run(folder, config, policy),
        _habits(config),
        config.seed,
    )


def _policy_of_run(folder: RunFolder, config: Config, policy: Policy) -> PreTrainedModel:
    from reval_core.draws import DrawReader
    from reval_core.machine import fix_machine
    from reval_core.replay import replay

    if not folder.checkpoint(policy.round).exists():
        fix_machine(folder, config)  # a replay gives the same weights only where it learns the same
    return replay(folder, config, DrawReader(folder), policy).model


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
