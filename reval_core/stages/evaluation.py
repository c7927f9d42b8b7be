"""Evaluation: sampled accuracy of a policy on the held-out problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import pyarrow as pa

from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.problems import problems_digest
from reval_core.replay_buffer.trajectories import response_table
from reval_core.stages.generation import new_group
from reval_core.stages.rollouts import request_seed
from reval_core.stages.stage import Outcome, publish, settings, stage
from reval_core.stages.verification import claims_of, stop_if_unjudged
from reval_core.storage.tables import SCHEMAS
from reval_core.user_code import code_identity
from reval_core.verification import VERIFIER_VERSION, Judgement

JUDGED_COLUMNS = (
    "prompt_id",
    "sample",
    "problem",
    "gold",
    "problem_set",
    "gold_mode",
    "response",
    "response_length",
    "finish_reason",
)
"""The columns of `trajectories` that an evaluation judges and publishes."""


def _inputs(context: RunContext, round: int, policy: Policy) -> list[Any]:
    config = context.config
    return [
        policy.identity,
        problems_digest(context.held_out),
        *map(settings, (config.rollouts, config.problems.prompt, config.verification)),
        config.engine.kind,
        config.evaluation.samples,
        *([config.evaluation.batch] if config.evaluation.batch else []),
        *([config.evaluation.target] if config.evaluation.target else []),
        config.seed,
        config.reward.function,
        config.reward.settings,
        code_identity(config.reward.function),
        VERIFIER_VERSION,
    ]


@stage(inputs=_inputs)
def evaluation(context: RunContext, round: int, policy: Policy) -> Outcome:
    """Sample `evaluation.samples` responses per held-out problem; fewer if `evaluation.target` is out of reach.

    The seeds do not depend on the round, so two evaluations differ only by their policies.

    Returns:
        The rows of `evaluations`. `info["accuracy"]` is the share of correct responses; for several problem sets,
        the mean of their accuracies (`info["accuracy_by_set"]`).
    """
    samples, target = context.config.evaluation.samples, context.config.evaluation.target
    drawn = samples if target is None else min(samples, context.config.generation.samples)
    rows, judgements = _answered(context, policy, range(drawn))
    while target is not None and drawn < samples and _is_reachable(target, judgements):
        more, judged = _answered(context, policy, range(drawn, min(2 * drawn, samples)))
        rows, judgements = {name: [*rows[name], *more[name]] for name in rows}, [*judgements, *judged]
        drawn = min(2 * drawn, samples)
    stop_if_unjudged("the evaluation", context.config.verification, judgements)
    table = evaluation_table(rows, judgements, round=round, policy=policy.identity)
    accuracies = accuracy_by_set(table)
    accuracy = sum(accuracies.values()) / len(accuracies)
    return Outcome(
        [publish(context, round, "evaluations", table)], {"accuracy": accuracy, "accuracy_by_set": accuracies}
    )


def _answered(
    context: RunContext, policy: Policy, samples: Sequence[int]
) -> tuple[dict[str, list[Any]], list[Judgement]]:
    """Generate these samples of every held-out problem. Returns them as columns, and their judgements."""
    seed = partial(request_seed, context, "evaluation", 0)
    groups = [new_group(problem, samples, context.prompts, seed) for problem in context.held_out]
    requests = [one for group in groups for one in group]
    with closing(context.generate(policy, requests, batch=context.config.evaluation.batch)) as generated:
        responses = dict(generated)
    table = response_table(
        [responses[place].written_by(policy.round) for place in range(len(requests))],
        context.tokenizer,
        round=policy.round,
        shard=None,
        first_id=0,
        policy=policy.identity,
        engine=context.generating().name,
        temperature=context.config.generation.temperature,
    )
    rows = table.select(JUDGED_COLUMNS).to_pydict()
    return rows, context.verifier.judge(claims_of(rows))


def _is_reachable(target: float, judgements: Sequence[Judgement]) -> bool:
    """Whether the target accuracy is at most three standard errors above the accuracy of these verdicts."""
    share = sum(judgement.verdict == "correct" for judgement in judgements) / len(judgements)
    return share >= target - 3 * math.sqrt(target * (1 - target) / len(judgements))


def evaluation_table(
    rows: Mapping[str, Sequence[Any]], judgements: Sequence[Judgement], *, round: int, policy: str
) -> pa.Table:
    """Rows of the table `evaluations`.

    Args:
        rows: The responses, as columns of the table `trajectories`.
        judgements: The judgement of each response.
        round: The number of rounds after which the policy was evaluated.
        policy: The identity of the policy.
    """
    verdicts = [judgement.verdict for judgement in judgements]
    judged = {
        "round": [round] * len(verdicts),
        "policy": [policy] * len(verdicts),
        "verdict": verdicts,
        "extracted": [judgement.extracted for judgement in judgements],
        "correct": [verdict == "correct" for verdict in verdicts],
    }
    given = {**rows, **judged}
    return pa.table({name: given[name] for name in SCHEMAS["evaluations"].names})


def accuracy_by_set(evaluations: pa.Table) -> dict[str, float]:
    """The accuracy on each problem set. Every problem must have the same number of responses."""
    by_set: dict[str, list[bool]] = {}
    for name, correct in zip(*evaluations.select(["problem_set", "correct"]).to_pydict().values(), strict=True):
        by_set.setdefault(name, []).append(correct)
    return {name: sum(verdicts) / len(verdicts) for name, verdicts in by_set.items()}
