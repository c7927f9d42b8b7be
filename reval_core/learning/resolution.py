"""The settings that a config may leave open, and how each is resolved.

| setting | resolved | from |
| --- | --- | --- |
| `learner.gradient_checkpointing`, `learner.precision: auto` | when the run starts, for good | this machine |
| `objective.beta_times_length` | once the first responses are published | their lengths |

A run keeps these values in its `config.yaml` (see `RunDirectory.check`), except β, which follows from records that
never change. The kind of engine that `auto` chooses is in `machine.json`.
"""

from __future__ import annotations

from reval_core.config import Config, ResidualObjective, Rollouts
from reval_core.errors import InputError
from reval_core.learning.precision import settled_learner
from reval_core.planning import gpu_memory
from reval_core.storage.run_directory import RunDirectory


def resolved(config: Config) -> Config:
    """The config with everything resolved that depends on this machine alone.

    Raises:
        InputError: The model's attention does not support the precision of this machine.
    """
    config = gpu_memory.with_checkpointing(config, gpu_memory.card())
    learner, attention = settled_learner(config.learner), config.model.attention or ""
    if attention.startswith("flash") and learner.precision == "float32":
        raise InputError(
            f"model.attention: {attention} computes in bfloat16, and learner.precision: auto is float32 here; "
            "leave attention out, or run on a GPU that has bfloat16"
        )
    return config if learner is config.learner else config.model_copy(update={"learner": learner})


def with_beta(config: Config, directory: RunDirectory) -> Config:
    """Resolve `objective.beta_times_length` to a β once the first rollouts are published.

    β = `objective.beta_times_length` / mean tokens per response, over the run's first rollouts: those of round 1,
    or all stored trajectories. These records never change, so neither does β.

    Args:
        config: The config of the run.
        directory: The run directory.

    Returns:
        The config as if β had been given, or `config` itself where β is given or the rollouts do not exist yet.
    """
    objective = config.objective
    if not isinstance(objective, ResidualObjective) or objective.beta_times_length is None:
        return config
    first = 1 if isinstance(config.rollouts, Rollouts) else 0
    if directory.manifest("rollouts", first) is None:
        return config
    lengths = directory.rows("rollouts", first, "trajectories", ("response_length",)).column(0).to_pylist()
    beta = objective.beta_times_length * len(lengths) / sum(lengths)
    known = objective.model_copy(update={"beta": beta, "beta_times_length": None})
    return config.model_copy(update={"objective": known})
