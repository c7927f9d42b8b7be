"""Which stage follows which: the rounds of a run, top to bottom.

`stages` is the plain functions of `reval_core.stages`, or the Prefect tasks of `tasks` under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reval_core.checkpoints import goodness
from reval_core.config import StoredRollouts
from reval_core.facts import Manifest
from reval_core.imports import Material
from reval_core.learning.average import next_reference
from reval_core.run_folder import reaches_target
from reval_core.session import Policy, Session
from reval_core.stored import keep_stored_run, stored_run


def train_rounds(session: Session, stages: Any) -> Iterator[int]:
    """Run a whole training run, giving each round's number once the round is on record (0 for the start).

    It ends early where the policy reaches `evaluation.target`. What earlier attempts have published is not done
    again.
    """
    config = session.config
    stored = isinstance(config.rollouts, StoredRollouts)
    before = stages.warm_start(session, 0)
    policy = reference = Policy.of(before)
    scores = _taken_over(session, stages, policy) if stored else None

    def evaluate(round: int) -> Manifest:
        if stored:
            return stages.residual_evaluation(session, round, policy, reference, scores)
        return stages.evaluation(session, round, policy)

    best = (goodness(evaluate(0)), 0)
    yield 0
    for round in range(1, config.rounds + 1):
        fresh = [] if stored else _fresh(session, stages, round, policy, reference)
        scores = fresh[-1] if fresh else scores
        draws = stages.sampling(session, round, scores, before)
        before = stages.learning(session, round, draws, policy)
        policy = Policy.of(before)
        done = [*fresh, draws, before]

        reached = False
        if _evaluation_due(session, round):
            evaluation = evaluate(round)
            best = max(best, (goodness(evaluation), round))
            reached = reaches_target(evaluation, config)
            done.append(evaluation)
        reset = config.reference.reset_after(round, draws.info["residual_left"])
        if reset:
            reference = next_reference(reference, policy, config.reference.ema)
        if reset or reached or best[1] == round or _due(session, "checkpoint", round, config.checkpoints.every):
            stages.checkpoint(session, round, policy)
            session.drop_checkpoints()
        if reset:
            before = stages.reference_reset(session, round, policy, reference)

        stages.recording(session, round, done)
        session.store.publish_views(session.folder.tables)
        if not stored:
            session.stop_if_collapsed(round)
        yield round
        if reached:
            return


def _fresh(session: Session, stages: Any, round: int, policy: Policy, reference: Policy) -> list[Manifest]:
    """The round's own trajectories: generated, judged, scored."""
    rollouts = stages.rollouts(session, round, policy)
    verdicts = stages.verification(session, round, rollouts)
    return [rollouts, verdicts, stages.consistency(session, round, rollouts, verdicts, policy, reference)]


def _taken_over(session: Session, stages: Any, policy: Policy) -> Manifest:
    """The trajectories of a stored run, with its verdicts, scored under policy 0. No round generates any."""
    stored = stored_run(session.folder, session.config.rollouts)
    keep_stored_run(session.folder, stored)
    rollouts = stages.stored_rollouts(session, 0, stored)
    verdicts = stages.stored_verdicts(session, 0, stored, rollouts)
    scores: Manifest = stages.consistency(session, 0, rollouts, verdicts, policy, policy)
    return scores


def import_responses(session: Session, stages: Any, material: Material) -> list[Manifest]:
    """Make the responses of a file a run that others learn from; gives its rollouts and its verdicts."""
    policy = Policy.of(stages.warm_start(session, 0))
    rollouts = stages.importing(session, 0, material)
    verdicts = stages.verification(session, 0, rollouts)
    stages.consistency(session, 0, rollouts, verdicts, policy, policy)
    session.store.publish_views(session.folder.tables)
    return [rollouts, verdicts]


def _due(session: Session, stage: str, round: int, every: int) -> bool:
    """Whether a stage is due in a round: by its interval, in the last round, or because it was done before."""
    last = round == session.config.rounds
    return last or round % every == 0 or session.folder.manifest(stage, round) is not None


def _evaluation_due(session: Session, round: int) -> bool:
    """Whether a round is evaluated: as it is due, near the target, or on record with an evaluation.

    That is the last round before a run was made longer.
    """
    if _due(session, "evaluation", round, session.config.evaluation.every) or session.nears_target(round):
        return True
    recorded = session.folder.manifest("recording", round)
    return recorded is not None and "evaluation" in recorded.info["stages"]
