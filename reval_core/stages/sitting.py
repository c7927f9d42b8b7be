"""A sitting's stages: one policy answers one set of problems, and its responses are judged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import pyarrow as pa

from reval_core.errors import Damaged
from reval_core.evaluation.examination import Examination
from reval_core.facts import Manifest, read_table
from reval_core.groups import Group, asked_and_written, finished_groups
from reval_core.stages.evaluation import evaluation_table
from reval_core.stages.shards import Shards
from reval_core.stages.stage import Outcome, Stage, publish, settings
from reval_core.stages.verification import claims_of, stop_if_unjudged
from reval_core.trajectories import IDS_PER_ROUND, Asked, response_table
from reval_core.user_code import code_identity
from reval_core.verification import VERIFIER_VERSION


def _responses_inputs(examination: Examination, number: int) -> list[Any]:
    return [examination.sitting(number).key]


def _generate(examination: Examination, number: int) -> Outcome:
    """Shards hold whole problems. Those that a crashed attempt has finished are kept."""
    folder, engine, policy_round = examination.folder, examination.engine, examination.subject.round
    if engine.streams and folder.manifest("rollouts", number) is not None:
        lost = folder.manifest_path("rollouts", number)
        raise Damaged(
            f"{lost.parent}: a shard is gone, and engine {engine.name} does not repeat itself; put back a copy, or "
            f"delete {lost} to have the rest of this sitting generated again"
        )
    key = sitting_responses.key(examination, number)
    shards = Shards(folder, number, key, writer=policy_round, gapless=engine.streams)
    done = shards.groups()
    waiting = {place: group for place, group in enumerate(_groups(examination, number)) if place not in done}
    size = examination.protocol.problems_per_shard
    with closing(finished_groups(waiting, policy_round, examination.generate, examination.tick)) as finished:
        shards.publish_finished(waiting, finished, size, partial(_table, examination, number))
    outcome = shards.outcome()
    outcome.info["engine"] = engine.name
    return outcome


def _groups(examination: Examination, number: int) -> list[Group]:
    groups = []
    for problem in examination.sitting(number).problems:
        text, tokens = examination.prompts[problem.problem]
        groups.append(
            Group.new(
                [
                    Asked(problem, sample, text, tokens, examination.request_seed(problem, sample))
                    for sample in range(examination.protocol.samples)
                ]
            )
        )
    return groups


def _table(
    examination: Examination, number: int, shard: int | None, first: int, groups: Sequence[Group]
) -> pa.Table:
    return response_table(
        *asked_and_written(groups),
        examination.tokenizer,
        round=examination.subject.round,
        shard=shard,
        first_id=number * IDS_PER_ROUND + first,
        policy=examination.subject.identity,
        engine=examination.engine.name,
        temperature=examination.protocol.temperature,
    )


def _verdicts_inputs(examination: Examination, number: int, responses: Manifest) -> list[Any]:
    judging = (examination.protocol.verification, examination.protocol.reward)
    function = code_identity(examination.protocol.reward.function)
    return [responses.digest, *map(settings, judging), function, VERIFIER_VERSION]


def _judge(examination: Examination, number: int, responses: Manifest) -> Outcome:
    columns = ("prompt_id", "sample", "problem", "gold", "problem_set", "gold_mode", "response", "response_length")
    files = responses.files_of("trajectories")
    shards = [read_table(examination.folder.path / file.path, (*columns, "finish_reason")) for file in files]
    rows = pa.concat_tables(shards).to_pydict()
    judgements = examination.verifier.judge(claims_of(rows))
    name = examination.sitting(number).name
    stop_if_unjudged(f"the sitting of {name}", examination.protocol.verification, judgements)
    subject = examination.subject
    table = evaluation_table(rows, judgements, round=subject.round, policy=subject.identity)
    return Outcome([publish(examination, number, "evaluations", table)])


sitting_responses = Stage("rollouts", _responses_inputs, _generate)
"""The responses of a sitting, as trajectories. (examination, sitting's number)"""

sitting_verdicts = Stage("evaluation", _verdicts_inputs, _judge)
"""What became of them, as evaluations. (examination, sitting's number, responses)"""


def drop_other_verdicts(examination: Examination, number: int, responses: Manifest) -> None:
    """Give up verdicts that other settings or another verifier have made: they can be made again at any time."""
    found = examination.folder.manifest("evaluation", number)
    if found is not None and found.key != sitting_verdicts.key(examination, number, responses):
        examination.folder.manifest_path("evaluation", number).unlink()
