"""Learning: K updates on the recorded draws, and checkpoints of the resulting policy."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from reval_core.learning.checkpoints import save_checkpoint
from reval_core.learning.distributed import checksum, saving
from reval_core.learning.learner import LEARNER_VERSION
from reval_core.learning.off_policy import writer_log_ratio
from reval_core.learning.update import Drawn, Update
from reval_core.objectives import objective_identity
from reval_core.pipeline.reconstruction import learn
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.replay_buffer.sampling import effective_sample_size
from reval_core.stages.stage import Outcome, publish, settings, stage
from reval_core.storage.tables import Manifest


def _inputs(context: RunContext, round: int, draws: Manifest, policy: Policy) -> list[Any]:
    config = context.config
    return [
        draws.digest,
        policy.identity,
        objective_identity(**settings(context.objective)),
        settings(config.learner),
        LEARNER_VERSION,
    ]


@stage(inputs=_inputs)
def learning(context: RunContext, round: int, draws: Manifest, policy: Policy) -> Outcome:
    """Run the updates of a round, which turn `policy` into the next policy.

    Returns:
        The rows of `updates` and `residuals`. `info["policy"]` is the identity of the next policy,
        `info["weights"]` the checksum of its weights, and `info["weights_before"]` the checksum before the updates.
        The latter equals the previous round's `weights`, unless a run resumed on a GPU or with another number of
        `info["processes"]` reconstructed other ones.
    """
    learner = context.learner_at(policy)
    before = checksum(learner)
    drawn = context.draws.read(round)
    updates = learn(learner, round, drawn, context.tick, keep_before=context.engine_may_lag)
    clip = context.config.learner.grad_clip
    tables = {"updates": _updates(round, drawn, updates, clip), "residuals": _residuals(round, drawn, updates)}
    files = [publish(context, round, name, rows) for name, rows in tables.items()]
    info = {"policy": learner.policy, "updates_done": learner.updates_done, "processes": learner.processes}
    return Outcome(files, {**info, "weights": checksum(learner), "weights_before": before})


def _checkpoint_inputs(context: RunContext, round: int, policy: Policy) -> list[Any]:
    return [policy.identity]


def _checkpoint_exists(context: RunContext, manifest: Manifest) -> bool:
    """Whether the checkpoint exists, or was deleted in favour of newer ones."""
    round = manifest.round
    return round not in context.retained_checkpoints or context.directory.checkpoint(round).exists()


@stage(inputs=_checkpoint_inputs, is_complete=_checkpoint_exists)
def checkpoint(context: RunContext, round: int, policy: Policy) -> Outcome:
    """Save a checkpoint of the policy."""
    directory = context.directory.checkpoint(round)
    learner = context.learner_at(policy)
    content = save_checkpoint(directory, learner, context.tokenizer, partial(saving, learner))
    return Outcome(info={"policy": policy.identity, "content": content})


def _updates(round: int, draws: list[Drawn], updates: list[Update], clip: float) -> pa.Table:
    return pa.table(
        {
            "round": [round] * len(updates),
            "update": range(1, len(updates) + 1),
            "trajectories": [len(drawn) for drawn in draws],
            "tokens": [update.tokens for update in updates],
            "loss": [update.loss for update in updates],
            "delta_abs": [float(np.abs(update.delta).mean()) for update in updates],
            "metrics": pa.array(
                [list(update.metrics.items()) for update in updates], pa.map_(pa.string(), pa.float64())
            ),
            "grad_norm": [update.grad_norm for update in updates],
            "grad_clipped": [update.grad_norm > clip and not update.skipped for update in updates],
            "lr": [update.lr for update in updates],
            "effective_sample_size": [effective_sample_size(drawn.weight) for drawn in draws],
            "skipped": [update.skipped for update in updates],
            "seconds": [update.seconds for update in updates],
        }
    )


def _residuals(round: int, draws: list[Drawn], updates: list[Update]) -> pa.Table:
    pairs = zip(draws, updates, strict=True)
    of_writer = np.concatenate([writer_log_ratio(drawn, update.log_ratio) for drawn, update in pairs])
    return pa.table(
        {
            "round": np.full(sum(map(len, draws)), round),
            "update": np.repeat(np.arange(1, len(draws) + 1), [len(drawn) for drawn in draws]),
            "trajectory_id": np.concatenate([drawn.ids for drawn in draws]),
            "delta": np.concatenate([update.delta for update in updates]),
            "value_term": np.concatenate([update.value_term for update in updates]),
            "log_ratio": np.concatenate([update.log_ratio for update in updates]),
            "writer_log_ratio": pa.array(of_writer, mask=np.isnan(of_writer)),
        }
    )
