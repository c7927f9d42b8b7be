"""The order of the stages: the rounds of a run, top to bottom.

`stages` is the plain functions of `reval_core.stages`, or the Prefect tasks of `tasks` under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reval_core.config import StoredRollouts
from reval_core.learning.checkpoints import selection_metric
from reval_core.pipeline.reference_average import next_reference
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.replay_buffer.imported import ImportedResponses
from reval_core.replay_buffer.offline import keep_stored_run, stored_run
from reval_core.storage.run_directory import reaches_target
from reval_core.storage.tables import Manifest


def train_rounds(context: RunContext, stages: Any) -> Iterator[int]:
    """Execute a training run, yielding each round's number once the round is recorded (0 for the start).

    Ends early when the policy reaches `evaluation.target`. Stages published by earlier attempts are not repeated.

    Args:
        context: The open run.
        stages: `reval_core.stages`, or the Prefect tasks of `tasks`.
    """
    config = context.config
    stored = isinstance(config.rollouts, StoredRollouts)
    before = stages.warm_start(context, 0)
    policy = reference = Policy.of(before)
    scores = _offline_data(context, stages, policy) if stored else None

    def evaluate(round: int) -> Manifest:
        if stored:
            return stages.residual_evaluation(context, round, policy, reference, scores)
        return stages.evaluation(context, round, policy)

    best = (selection_metric(evaluate(0)), 0)
    yield 0
    for round in range(1, config.rounds + 1):
        fresh = [] if stored else _fresh(context, stages, round, policy, reference)
        scores = fresh[-1] if fresh else scores
        draws = stages.sampling(context, round, scores, before)
        before = stages.learning(context, round, draws, policy)
        policy = Policy.of(before)
        done = [*fresh, draws, before]

        reached = False
        if _evaluation_due(context, round):
            evaluation = evaluate(round)
            best = max(best, (selection_metric(evaluation), round))
            reached = reaches_target(evaluation, config)
            done.append(evaluation)
        reset = config.reference.reset_after(round, draws.info["residual_left"])
        if reset:
            reference = next_reference(reference, policy, config.reference.ema)
        if reset or reached or best[1] == round or _due(context, "checkpoint", round, config.checkpoints.every):
            stages.checkpoint(context, round, policy)
            context.drop_checkpoints()
        if reset:
            before = stages.reference_reset(context, round, policy, reference)

        stages.recording(context, round, done)
        context.store.publish_views(context.directory.tables)
        if not stored:
            context.stop_if_collapsed(round)
        yield round
        if reached:
            return


def _fresh(context: RunContext, stages: Any, round: int, policy: Policy, reference: Policy) -> list[Manifest]:
    """The round's own trajectories: generated, judged, scored."""
    rollouts = stages.rollouts(context, round, policy)
    verdicts = stages.verification(context, round, rollouts)
    return [rollouts, verdicts, stages.consistency(context, round, rollouts, verdicts, policy, reference)]


def _offline_data(context: RunContext, stages: Any, policy: Policy) -> Manifest:
    """The trajectories and verdicts of a stored run, scored under the initial policy. No round generates any."""
    source = context.config.rollouts
    assert isinstance(source, StoredRollouts), "other runs generate or import their rollouts"
    stored = stored_run(context.directory, source)
    keep_stored_run(context.directory, stored)
    rollouts = stages.stored_rollouts(context, 0, stored)
    verdicts = stages.stored_verdicts(context, 0, stored, rollouts)
    scores: Manifest = stages.consistency(context, 0, rollouts, verdicts, policy, policy)
    return scores


def import_responses(context: RunContext, stages: Any, imported: ImportedResponses) -> list[Manifest]:
    """Store imported responses as a run for offline training. Returns its manifests of rollouts and verdicts."""
    policy = Policy.of(stages.warm_start(context, 0))
    rollouts = stages.importing(context, 0, imported)
    verdicts = stages.verification(context, 0, rollouts)
    stages.consistency(context, 0, rollouts, verdicts, policy, policy)
    context.store.publish_views(context.directory.tables)
    return [rollouts, verdicts]


def _due(context: RunContext, stage: str, round: int, every: int) -> bool:
    """Whether a stage is due in a round: by its interval, in the last round, or because it is already published."""
    last = round == context.config.rounds
    return last or round % every == 0 or context.directory.manifest(stage, round) is not None


def _evaluation_due(context: RunContext, round: int) -> bool:
    """Whether a round is evaluated: it is due, near the target, or recorded with an evaluation.

    The latter is the last round before a run was extended.
    """
    if _due(context, "evaluation", round, context.config.evaluation.every) or context.nears_target(round):
        return True
    recorded = context.directory.manifest("recording", round)
    return recorded is not None and "evaluation" in recorded.info["stages"]
