"""Sampling: draws the batches of all updates of a round, and records them before learning starts."""

from __future__ import annotations

from typing import Any

from reval_core.pipeline.run_context import RunContext
from reval_core.replay_buffer.sampling import draw_round, residual_left
from reval_core.stages.noise import as_noise, round_noise
from reval_core.stages.stage import Outcome, publish, settings, stage
from reval_core.storage.tables import Manifest


def _inputs(context: RunContext, round: int, scores: Manifest, before: Manifest) -> list[Any]:
    config = context.config
    batch = config.rollouts.trajectories
    updates, least = config.learner.updates, config.learner.least_updates
    drawn = [] if least is None else [least]
    noise = round_noise(context, round)
    return [scores.digest, before.digest, settings(config.replay), updates, batch, config.seed, noise, *drawn]


@stage(inputs=_inputs)
def sampling(context: RunContext, round: int, scores: Manifest, before: Manifest) -> Outcome:
    """Draw K batches. `before` is the manifest of the residuals that determine the priorities (the last learning).

    Returns:
        The rows of `draws`. `info` contains K (`updates`), the remaining share of the residual at the start of the
        round (`residual_left`), and the scoring noise that the learner uses (`noise`).
    """
    config = context.config
    beta = context.objective.beta
    left = None if beta is None else residual_left(context.store, beta)
    updates, noise = config.learner.updates_with(left), round_noise(context, round)
    draws = draw_round(
        context.store,
        config.replay,
        round=round,
        batch=config.rollouts.trajectories,
        updates=updates,
        seed=config.seed,
        noise=as_noise(noise),
    )
    info = {"updates": updates, "residual_left": left, "noise": noise}
    return Outcome([publish(context, round, "draws", draws)], info)
