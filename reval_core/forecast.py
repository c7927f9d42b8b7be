"""What a run will need: its sizes, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from reval_core.config import Config, Rollouts, RolloutSource
from reval_core.models import count_parameters
from reval_core.stored import StoredRun

_FLOAT = 4
# Measured on the demo: a trajectory's row in all tables together, without its tokens, compressed.
_BYTES_PER_TRAJECTORY = 160
_BYTES_PER_DRAW = 40
# Ids, two log-probs, a residual and a flag a token, as written.
_BYTES_PER_TOKEN = 16


@dataclass(frozen=True)
class Forecast:
    """The sizes of a run. Disk is an upper estimate: responses are taken at their longest."""

    parameters: int
    trajectories: int
    updates: int
    checkpoint_bytes: int
    rollout_bytes: int

    @property
    def disk_bytes(self) -> int:
        """All that the run folder will hold at its largest."""
        return self.checkpoint_bytes + self.rollout_bytes


def forecast(config: Config, stored: StoredRun | None = None) -> Forecast:
    """The sizes of a run, by its config and what it takes over."""
    parameters, trained = count_parameters(config.model)
    trajectories, tokens = _generated(config.rounds, config.rollouts)
    if stored is not None:
        trajectories, tokens = stored.rows, stored.tokens
    updates = config.rounds * config.learner.updates
    # Weights and two moments; the newest, and those of round 0, the reference and the best; one being written.
    checkpoints = trained * _FLOAT * 3 * (config.checkpoints.keep + 4)
    if config.model.lora is not None:
        checkpoints += parameters * _FLOAT  # the base, once
    rows = trajectories * _BYTES_PER_TRAJECTORY + tokens * _BYTES_PER_TOKEN
    draws = updates * config.rollouts.trajectories * _BYTES_PER_DRAW
    if stored is not None:  # each evaluation leaves a row for each of them
        draws += (2 + config.rounds // config.evaluation.every) * stored.rows * _BYTES_PER_DRAW
    return Forecast(parameters, trajectories, updates, checkpoints, rows + draws)


def import_bytes(config: Config, rows: int, tokens: int) -> int:
    """The disk that an import takes, at most: policy 0 and the rows."""
    parameters, trained = count_parameters(config.model)
    weights = (2 * trained if config.model.lora is None else trained + parameters) * _FLOAT
    return weights + rows * _BYTES_PER_TRAJECTORY + tokens * _BYTES_PER_TOKEN


def _generated(rounds: int, rollouts: RolloutSource) -> tuple[int, int]:
    """How many trajectories a run generates, and the most tokens that they can have."""
    if not isinstance(rollouts, Rollouts):
        return 0, 0
    trajectories = rounds * rollouts.trajectories
    return trajectories, trajectories * rollouts.max_tokens
