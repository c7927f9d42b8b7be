"""The order of the stages: of a training run, of an import and of an evaluation, top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from reval_core import stages
from reval_core.config import StoredRollouts
from reval_core.evaluation.context import BenchmarkRun, EvaluationContext
from reval_core.learning.checkpoints import selection_metric
from reval_core.pipeline.reference_average import next_reference
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.replay_buffer.imported import ImportedResponses
from reval_core.replay_buffer.offline import keep_stored_run, stored_run
from reval_core.stages.benchmark import drop_other_verdicts
from reval_core.stages.stage import Context, Inputs, Stage
from reval_core.storage.run_directory import reaches_target
from reval_core.storage.tables import Manifest


class Runner(Protocol):
    """Executes a stage and returns its manifest: `run_here`, or `reval.tasks.stage_task.run_as_task`."""

    def __call__(
        self,
        stage: Stage[Context, Inputs],
        context: Context,
        round: int,
        *inputs: Inputs.args,
        **named: Inputs.kwargs,
    ) -> Manifest:
        """The manifest of the stage, published before or now."""


def run_here(
    stage: Stage[Context, Inputs], context: Context, round: int, *inputs: Inputs.args, **named: Inputs.kwargs
) -> Manifest:
    """Execute a stage without Prefect."""
    return stage(context, round, *inputs, **named)


def train_rounds(context: RunContext, run: Runner = run_here) -> Iterator[int]:
    """Execute a training run, yielding each round's number once the round is recorded (0 for the start).

    Ends early when the policy reaches `evaluation.target`. Stages published by earlier attempts are not repeated.

    Args:
        context: The open run.
        run: Executes each stage.
    """
    config = context.config
    before = run(stages.warm_start, context, 0)
    policy = reference = Policy.of(before)
    offline = _offline_data(context, run, policy) if isinstance(config.rollouts, StoredRollouts) else None

    def evaluate(round: int) -> Manifest:
        if offline is not None:
            return run(stages.residual_evaluation, context, round, policy, reference, offline)
        return run(stages.evaluation, context, round, policy)

    best = (selection_metric(evaluate(0)), 0)
    yield 0
    for round in range(1, config.rounds + 1):
        fresh = [] if offline else _fresh(context, run, round, policy, reference)
        draws = run(stages.sampling, context, round, offline or fresh[-1], before)
        before = run(stages.learning, context, round, draws, policy)
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
            run(stages.checkpoint, context, round, policy)
            context.drop_checkpoints()
        if reset:
            before = run(stages.reference_reset, context, round, policy, reference)

        run(stages.recording, context, round, done)
        context.store.publish_views(context.directory.tables)
        if offline is None:
            context.stop_if_collapsed(round)
        yield round
        if reached:
            return


def _fresh(context: RunContext, run: Runner, round: int, policy: Policy, reference: Policy) -> list[Manifest]:
    """The round's own trajectories: generated, judged, scored."""
    rollouts = run(stages.rollouts, context, round, policy)
    verdicts = run(stages.verification, context, round, rollouts)
    return [rollouts, verdicts, run(stages.consistency, context, round, rollouts, verdicts, policy, reference)]


def _offline_data(context: RunContext, run: Runner, policy: Policy) -> Manifest:
    """The trajectories and verdicts of a stored run, scored under the initial policy. No round generates any."""
    source = context.config.rollouts
    assert isinstance(source, StoredRollouts), "other runs generate or import their rollouts"
    stored = stored_run(context.directory, source)
    keep_stored_run(context.directory, stored)
    rollouts = run(stages.stored_rollouts, context, 0, stored)
    verdicts = run(stages.stored_verdicts, context, 0, stored, rollouts)
    return run(stages.consistency, context, 0, rollouts, verdicts, policy, policy)


def import_responses(
    context: RunContext, imported: ImportedResponses, run: Runner = run_here
) -> tuple[Manifest, Manifest]:
    """Store imported responses as a run for offline training. Returns its manifests of rollouts and verdicts."""
    policy = Policy.of(run(stages.warm_start, context, 0))
    rollouts = run(stages.importing, context, 0, imported)
    verdicts = run(stages.verification, context, 0, rollouts)
    run(stages.consistency, context, 0, rollouts, verdicts, policy, policy)
    context.store.publish_views(context.directory.tables)
    return rollouts, verdicts


def run_benchmarks(context: EvaluationContext, run: Runner = run_here) -> Iterator[BenchmarkRun]:
    """Execute an evaluation, yielding each benchmark run once it is judged.

    What earlier attempts published is reused.

    Args:
        context: The open evaluation.
        run: Executes each stage.
    """
    for benchmark in context.benchmarks:
        responses = run(stages.sitting_responses, context, benchmark.number)
        drop_other_verdicts(context, benchmark.number, responses)
        run(stages.sitting_verdicts, context, benchmark.number, responses)
        context.judged(benchmark)
        yield benchmark


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
