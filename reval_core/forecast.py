"""What a run will need: its sizes, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from reval_core.config import Config
from reval_core.models import count_parameters

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


def forecast(config: Config) -> Forecast:
    """The sizes of a run by its config alone."""
    parameters, trained = count_parameters(config.model)
    trajectories = config.rounds * config.rollouts.trajectories
    updates = config.rounds * config.learner.updates
    # Weights and two moments; the newest, and those of round 0, the reference and the best; one being written.
    checkpoints = trained * _FLOAT * 3 * (config.checkpoints.keep + 4)
    if config.model.lora is not None:
        checkpoints += parameters * _FLOAT  # the base, once
    rows = trajectories * (_BYTES_PER_TRAJECTORY + config.rollouts.max_tokens * _BYTES_PER_TOKEN)
    draws = updates * config.rollouts.trajectories * _BYTES_PER_DRAW
    return Forecast(parameters, trajectories, updates, checkpoints, rows + draws)
