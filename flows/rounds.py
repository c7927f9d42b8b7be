"""Which stage follows which: the rounds of a run, top to bottom.

`stages` is the plain functions of `reval_core.stages`, or the Prefect tasks of `tasks` under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reval_core.session import Policy, Session


def train_rounds(session: Session, stages: Any) -> Iterator[int]:
    """Run a whole training run, giving each round's number once the round is on record (0 for the start).

    What earlier attempts have published is not done again.
    """
    config = session.config
    before = stages.warm_start(session, 0)
    policy = reference = Policy.of(before)
    best = (stages.evaluation(session, 0, policy).info["accuracy"], 0)
    yield 0
    for round in range(1, config.rounds + 1):
        rollouts = stages.rollouts(session, round, policy)
        verdicts = stages.verification(session, round, rollouts)
        scores = stages.consistency(session, round, rollouts, verdicts, policy, reference)
        draws = stages.sampling(session, round, scores, before)
        before = stages.learning(session, round, draws, policy)
        policy = Policy.of(before)
        done = [rollouts, verdicts, scores, draws, before]

        if _due(session, "evaluation", round, config.evaluation.every):
            evaluation = stages.evaluation(session, round, policy)
            best = max(best, (evaluation.info["accuracy"], round))
            done.append(evaluation)
        reset = config.reference.reset_every is not None and round % config.reference.reset_every == 0
        if reset:
            reference = policy
        if reset or best[1] == round or _due(session, "checkpoint", round, config.checkpoints.every):
            stages.checkpoint(session, round, policy, [0, reference.round, best[1]])
        if reset:
            before = stages.reference_reset(session, round, policy)

        stages.recording(session, round, done)
        session.store.publish_views(session.folder.tables)
        session.stop_if_collapsed(round)
        yield round


def _due(session: Session, stage: str, round: int, every: int) -> bool:
    """Whether a stage is due in a round: by its interval, in the last round, or because it was done before."""
    last = round == session.config.rounds
    return last or round % every == 0 or session.folder.manifest(stage, round) is not None
