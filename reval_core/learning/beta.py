"""β set from how long responses are: what a config leaves open until the first of them are there."""

from __future__ import annotations

from collections.abc import Sequence

from reval_core.config import Config, ResidualObjective, Rollouts
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest, read_table


def with_beta(config: Config, directory: RunDirectory) -> Config:
    """The config with β in figures, as if it had been given, once the run has come so far; else as it is.

    β = `objective.beta_times_length` / the mean tokens of a response, over the run's first rollouts: those of round
    1, or all stored trajectories. They are facts and never change, so neither does β.
    """
    objective = config.objective
    if not isinstance(objective, ResidualObjective) or objective.beta_times_length is None:
        return config
    rollouts = directory.manifest("rollouts", 1 if isinstance(config.rollouts, Rollouts) else 0)
    if rollouts is None:
        return config
    lengths = _response_lengths(directory, rollouts)
    beta = objective.beta_times_length * len(lengths) / sum(lengths)
    known = objective.model_copy(update={"beta": beta, "beta_times_length": None})
    return config.model_copy(update={"objective": known})


def _response_lengths(directory: RunDirectory, rollouts: Manifest) -> Sequence[int]:
    """The tokens of each response of a round."""
    lengths: list[int] = []
    # Of a pruned run one file holds many rounds, and stands for several files of each.
    for path in dict.fromkeys(file.path for file in rollouts.files_of("trajectories")):
        rows = read_table(directory.path / path, ("round", "response_length"))
        pairs = zip(rows.column("round").to_pylist(), rows.column("response_length").to_pylist(), strict=True)
        lengths += [length for round, length in pairs if round == rollouts.round]
    return lengths
