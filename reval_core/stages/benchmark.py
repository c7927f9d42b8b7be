"""The stages of a benchmark run: a model answers one set of problems, and its responses are judged."""

from __future__ import annotations

from functools import partial
from typing import Any

from reval_core.evaluation.context import EvaluationContext
from reval_core.replay_buffer.trajectories import response_table
from reval_core.stages.evaluation import JUDGED_COLUMNS, evaluation_table
from reval_core.stages.generation import Shards, new_group
from reval_core.stages.stage import Outcome, Stage, publish, settings
from reval_core.stages.verification import claims_of, stop_if_unjudged
from reval_core.storage.tables import Manifest
from reval_core.user_code import code_identity
from reval_core.verification import VERIFIER_VERSION


def _responses_inputs(context: EvaluationContext, number: int) -> list[Any]:
    return [context.benchmark(number).key]


def _generate(context: EvaluationContext, number: int) -> Outcome:
    """Generate the shards, which contain whole problems. Finished shards of a crashed attempt are kept."""
    source, protocol, engine = context.source, context.protocol, context.engine
    lost = context.directory.manifest_path("rollouts", number)
    otherwise = f"delete {lost} to regenerate the missing responses of this benchmark run"
    key = sitting_responses.key(context, number)
    shards = Shards.of_engine(context.directory, number, key, engine, source.round, otherwise)
    groups = [
        new_group(problem, range(protocol.samples), context.prompts, context.request_seed)
        for problem in context.benchmark(number).problems
    ]
    rows = partial(
        response_table,
        tokenizer=context.tokenizer,
        round=source.round,
        policy=source.identity,
        engine=engine.name,
        temperature=protocol.temperature,
    )
    generate = partial(context.generate, context.policy)
    shards.generate(dict(enumerate(groups)), protocol.problems_per_shard, generate, rows)
    return shards.outcome(engine.name)


def _verdicts_inputs(context: EvaluationContext, number: int, responses: Manifest) -> list[Any]:
    judging = (context.protocol.verification, context.protocol.reward)
    function = code_identity(context.protocol.reward.function)
    return [responses.digest, *map(settings, judging), function, VERIFIER_VERSION]


def _judge(context: EvaluationContext, number: int, responses: Manifest) -> Outcome:
    rows = context.directory.rows(responses.stage, number, "trajectories", JUDGED_COLUMNS).to_pydict()
    judgements = context.verifier.judge(claims_of(rows))
    name = context.benchmark(number).name
    stop_if_unjudged(f"benchmark run {name}", context.protocol.verification, judgements)
    source = context.source
    table = evaluation_table(rows, judgements, round=source.round, policy=source.identity)
    return Outcome([publish(context, number, "evaluations", table)])


sitting_responses = Stage("rollouts", _responses_inputs, _generate)
"""The responses of a benchmark run, as trajectories. Inputs: evaluation context, number of the benchmark."""

sitting_verdicts = Stage("evaluation", _verdicts_inputs, _judge)
"""The verdicts on these responses, as evaluations. Inputs: evaluation context, number, manifest of responses."""


def drop_other_verdicts(context: EvaluationContext, number: int, responses: Manifest) -> None:
    """Drop verdicts made with other settings or by another verifier: they can be recomputed at any time."""
    manifest = context.directory.manifest("evaluation", number)
    if manifest is not None and manifest.key != sitting_verdicts.key(context, number, responses):
        context.directory.manifest_path("evaluation", number).unlink()
