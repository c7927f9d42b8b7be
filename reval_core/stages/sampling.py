"""Sampling: the draws of all updates of a round, made and recorded before its learning starts."""

from __future__ import annotations

from typing import Any

from reval_core.facts import Manifest
from reval_core.sampling import draw_round
from reval_core.session import Session
from reval_core.stages.stage import Outcome, publish, settings, stage


def _inputs(session: Session, round: int, scores: Manifest, before: Manifest) -> list[Any]:
    config = session.config
    batch = config.rollouts.trajectories
    return [scores.digest, before.digest, settings(config.replay), config.learner.updates, batch, config.seed]


@stage(inputs=_inputs)
def sampling(session: Session, round: int, scores: Manifest, before: Manifest) -> Outcome:
    """Draw K batches. `before` left the residuals that the priorities come from: the last round's learning."""
    config = session.config
    draws = draw_round(
        session.store,
        config.replay,
        round=round,
        batch=config.rollouts.trajectories,
        updates=config.learner.updates,
        seed=config.seed,
    )
    return Outcome([publish(session, round, "draws", draws)])
