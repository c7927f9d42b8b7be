"""The stages of a benchmark run: a model answers one set of problems, and its responses are judged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import pyarrow as pa

from reval_core.errors import CorruptData
from reval_core.evaluation.context import EvaluationContext
from reval_core.replay_buffer.groups import Group, finished_groups, requests_and_responses
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND, SampleRequest, response_table
from reval_core.stages.evaluation import evaluation_table
from reval_core.stages.shards import Shards
from reval_core.stages.stage import Outcome, Stage, publish, settings
from reval_core.stages.verification import claims_of, stop_if_unjudged
from reval_core.storage.tables import Manifest
from reval_core.user_code import code_identity
from reval_core.verification import VERIFIER_VERSION


def _responses_inputs(context: EvaluationContext, number: int) -> list[Any]:
    return [context.benchmark(number).key]


def _generate(context: EvaluationContext, number: int) -> Outcome:
    """Generate the shards, which contain whole problems. Finished shards of a crashed attempt are kept."""
    directory, engine, policy_round = context.directory, context.engine, context.source.round
    if engine.streams and directory.manifest("rollouts", number) is not None:
        lost = directory.manifest_path("rollouts", number)
        raise CorruptData(
            f"{lost.parent}: a shard is missing, and generation with engine {engine.name} is not reproducible; "
            f"restore the shard from a backup, or delete {lost} to regenerate the missing responses of this "
            "benchmark run"
        )
    key = sitting_responses.key(context, number)
    shards = Shards(directory, number, key, writer=policy_round, gapless=engine.streams)
    done = shards.groups()
    waiting = {place: group for place, group in enumerate(_groups(context, number)) if place not in done}
    size = context.protocol.problems_per_shard
    with closing(
        finished_groups(waiting, policy_round, partial(context.generate, context.policy), context.tick)
    ) as finished:
        shards.publish_finished(waiting, finished, size, partial(_table, context, number))
    outcome = shards.outcome()
    outcome.info["engine"] = engine.name
    return outcome


def _groups(context: EvaluationContext, number: int) -> list[Group]:
    groups = []
    for problem in context.benchmark(number).problems:
        text, tokens = context.prompts[problem.problem]
        groups.append(
            Group.new(
                [
                    SampleRequest(problem, sample, text, tokens, context.request_seed(problem, sample))
                    for sample in range(context.protocol.samples)
                ]
            )
        )
    return groups


def _table(
    context: EvaluationContext, number: int, shard: int | None, first: int, groups: Sequence[Group]
) -> pa.Table:
    return response_table(
        *requests_and_responses(groups),
        context.tokenizer,
        round=context.source.round,
        shard=shard,
        first_id=number * IDS_PER_ROUND + first,
        policy=context.source.identity,
        engine=context.engine.name,
        temperature=context.protocol.temperature,
    )


def _verdicts_inputs(context: EvaluationContext, number: int, responses: Manifest) -> list[Any]:
    judging = (context.protocol.verification, context.protocol.reward)
    function = code_identity(context.protocol.reward.function)
    return [responses.digest, *map(settings, judging), function, VERIFIER_VERSION]


def _judge(context: EvaluationContext, number: int, responses: Manifest) -> Outcome:
    columns = ("prompt_id", "sample", "problem", "gold", "problem_set", "gold_mode", "response", "response_length")
    read = (*columns, "finish_reason")
    rows = context.directory.rows(responses.stage, number, "trajectories", read).to_pydict()
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
