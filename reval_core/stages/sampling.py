"""Sampling: the draws of all updates of a round, made and recorded before its learning starts."""

from __future__ import annotations

from typing import Any

from reval_core.facts import Manifest
from reval_core.sampling import draw_round, residual_left
from reval_core.session import Session
from reval_core.stages.stage import Outcome, publish, settings, stage


def _inputs(session: Session, round: int, scores: Manifest, before: Manifest) -> list[Any]:
    config = session.config
    batch = config.rollouts.trajectories
    updates, least = config.learner.updates, config.learner.least_updates
    drawn = [] if least is None else [least]
    return [scores.digest, before.digest, settings(config.replay), updates, batch, config.seed, *drawn]


@stage(inputs=_inputs)
def sampling(session: Session, round: int, scores: Manifest, before: Manifest) -> Outcome:
    """Draw K batches. `before` left the residuals that the priorities come from: the last round's learning.

    `info` says how many, and `residual_left`: the share of the residual that the round begins with.
    """
    config = session.config
    beta = config.objective.beta
    left = None if beta is None else residual_left(session.store, beta)
    updates = config.learner.updates_with(left)
    draws = draw_round(
        session.store,
        config.replay,
        round=round,
        batch=config.rollouts.trajectories,
        updates=updates,
        seed=config.seed,
    )
    return Outcome([publish(session, round, "draws", draws)], {"updates": updates, "residual_left": left})
