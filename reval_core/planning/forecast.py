"""Estimates of the sizes of a run, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reval_core.config import Config, ProblemSet, Rollouts, RolloutSource
from reval_core.model.loading import count_parameters
from reval_core.problems.registered import REGISTERED
from reval_core.replay_buffer.offline import StoredRun

_FLOAT = 4
# Measured on the demo: bytes per trajectory in all tables together, without its tokens, compressed.
_BYTES_PER_TRAJECTORY = 160
_BYTES_PER_DRAW = 40
# On disk, per token: id and engine log-prob, with the text; then the residual and the policy's log-prob.
_ROLLOUT_BYTES_PER_TOKEN = 8
_SCORE_BYTES_PER_TOKEN = 8
_BYTES_PER_TOKEN = _ROLLOUT_BYTES_PER_TOKEN + _SCORE_BYTES_PER_TOKEN
# An evaluation stores only the text: at most 4 bytes per token on disk.
_TEXT_BYTES_PER_TOKEN = 4
# Rows of the store (benchmarks/baselines/store.json: 231 MB per million trajectories).
_STORE_BYTES_PER_TRAJECTORY = 231


@dataclass(frozen=True)
class Forecast:
    """The sizes of a run. Disk usage is an upper bound: it assumes responses of maximum length."""

    parameters: int
    trajectories: int
    updates: int
    stage_bytes: Mapping[str, int]
    """Maximum disk usage of each stage over the whole run, in bytes."""

    @property
    def disk_bytes(self) -> int:
        """Maximum size of the run directory, in bytes."""
        return sum(self.stage_bytes.values())


def forecast(config: Config, stored: StoredRun | None = None) -> Forecast:
    """Estimate the sizes of a run from its config and, if given, the stored run that it learns from."""
    parameters, trained = count_parameters(config.model)
    trajectories, tokens = _generated(config.rounds, config.rollouts)
    if stored is not None:
        trajectories, tokens = stored.rows, stored.tokens
    updates = config.rounds * config.learner.updates
    # Weights and two moments, of the newest checkpoints, round 0, the reference, the best, and one being written.
    checkpoints = trained * _FLOAT * 3 * (config.checkpoints.keep + 4)
    if config.model.lora is not None:
        checkpoints += parameters * _FLOAT  # the base, once
    if config.reference.ema is not None:
        checkpoints += parameters * _FLOAT * 3  # the two newest averages and one being written
    evaluations = 2 + config.rounds // config.evaluation.every
    if stored is None:
        evaluated = evaluations * _evaluation_bytes(config)
    else:  # each evaluation writes a row per trajectory
        evaluated = evaluations * stored.rows * _BYTES_PER_DRAW
    stages = {
        "rollouts": trajectories * _BYTES_PER_TRAJECTORY + tokens * _ROLLOUT_BYTES_PER_TOKEN,
        "consistency": tokens * _SCORE_BYTES_PER_TOKEN,
        "learning": updates * config.rollouts.trajectories * _BYTES_PER_DRAW,
        "evaluation": evaluated,
        "checkpoint": checkpoints,
        "store": trajectories * _STORE_BYTES_PER_TRAJECTORY,
    }
    return Forecast(parameters, trajectories, updates, stages)


def _evaluation_bytes(config: Config) -> int:
    """Maximum bytes of one evaluation, as far as the sizes of its sets are known without reading them."""
    if not isinstance(config.rollouts, Rollouts):
        return 0
    response = _BYTES_PER_TRAJECTORY + config.rollouts.max_tokens * _TEXT_BYTES_PER_TOKEN
    return held_out_problems(config) * config.evaluation.samples * response


def held_out_problems(config: Config) -> int:
    """Maximum number of held-out problems, as far as the sizes of their sets are known without reading them."""
    return sum(_problems(source) for source in config.problems.held_out)


def _problems(source: ProblemSet) -> int:
    """Maximum number of problems of a set, if known: its limit, or the size of the registered set. Otherwise 0."""
    sizes = REGISTERED[source.set].sizes if source.set else ()
    known = [size for size in (max(sizes, default=None), source.limit) if size is not None]
    return min(known, default=0)


def import_bytes(config: Config, rows: int, tokens: int) -> int:
    """Maximum disk usage of an import, in bytes: the initial policy and the rows."""
    parameters, trained = count_parameters(config.model)
    weights = (2 * trained if config.model.lora is None else trained + parameters) * _FLOAT
    return weights + rows * _BYTES_PER_TRAJECTORY + tokens * _BYTES_PER_TOKEN


def _generated(rounds: int, rollouts: RolloutSource) -> tuple[int, int]:
    """Maximum number of trajectories that a run generates, and of their tokens."""
    if not isinstance(rollouts, Rollouts):
        return 0, 0
    trajectories = rounds * rollouts.most_trajectories
    return trajectories, trajectories * rollouts.max_tokens
