"""Evaluation: sampled accuracy of a policy on the held-out problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from reval_core.engines.engine import Completion, Request
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.problems import problems_digest
from reval_core.stages.rollouts import request_seed
from reval_core.stages.stage import Outcome, publish, settings, stage
from reval_core.stages.verification import claims_of, stop_if_unjudged
from reval_core.storage.tables import SCHEMAS
from reval_core.user_code import code_identity
from reval_core.verification import VERIFIER_VERSION, Judgement


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
    """Ask every held-out problem `evaluation.samples` times; less often where `evaluation.target` is out of reach.

    `info["accuracy"]` is the share that is right; of several problem sets, the mean of their shares.

    The seeds do not depend on the round, so two evaluations differ by their policies alone.
    """
    samples, target = context.config.evaluation.samples, context.config.evaluation.target
    asked = samples if target is None else min(samples, context.config.generation.samples)
    rows, judgements = _answered(context, policy, range(asked))
    while target is not None and asked < samples and _may_be(target, judgements):
        more, judged = _answered(context, policy, range(asked, min(2 * asked, samples)))
        rows, judgements = {name: [*rows[name], *more[name]] for name in rows}, [*judgements, *judged]
        asked = min(2 * asked, samples)
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
    """These samples of every held-out problem, as columns, and their judgements."""
    asked = [(problem, sample) for problem in context.held_out for sample in samples]
    prompts = {problem: context.prompts[problem.problem][1] for problem in context.held_out}
    requests = [
        Request(prompts[problem], request_seed(context, "evaluation", 0, problem, sample))
        for problem, sample in asked
    ]
    completions = _generate(context, policy, requests)
    rows = {
        "prompt_id": [problem.prompt_id for problem, _ in asked],
        "sample": [sample for _, sample in asked],
        "problem": [problem.problem for problem, _ in asked],
        "gold": [problem.answer for problem, _ in asked],
        "problem_set": [problem.problem_set for problem, _ in asked],
        "gold_mode": [problem.gold_mode for problem, _ in asked],
        "response": context.tokenizer.batch_decode([one.tokens for one in completions], skip_special_tokens=True),
        "response_length": [len(completion.tokens) for completion in completions],
        "finish_reason": [completion.finish_reason for completion in completions],
    }
    return rows, context.verifier.judge(claims_of(rows))


def _may_be(target: float, judgements: Sequence[Judgement]) -> bool:
    """Whether these verdicts leave room for such an accuracy: are within three standard errors of it."""
    share = sum(judgement.verdict == "correct" for judgement in judgements) / len(judgements)
    return share >= target - 3 * math.sqrt(target * (1 - target) / len(judgements))


def evaluation_table(
    rows: Mapping[str, Sequence[Any]], judgements: Sequence[Judgement], *, round: int, policy: str
) -> pa.Table:
    """Judged responses of the policy after `round` rounds; `rows` are those of its trajectories."""
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
    """The share of right responses to each problem set. Every problem has as many."""
    right: dict[str, list[bool]] = {}
    for name, correct in zip(*evaluations.select(["problem_set", "correct"]).to_pydict().values(), strict=True):
        right.setdefault(name, []).append(correct)
    return {name: sum(found) / len(found) for name, found in right.items()}


def _generate(context: RunContext, policy: Policy, requests: list[Request]) -> list[Completion]:
    """One completion a request, in order."""
    completions: dict[int, Completion] = {}
    for place, completion in context.generate(policy, requests, batch=context.config.evaluation.batch):
        completions[place] = completion
        context.tick(len(completions), len(requests))
    return [completions[place] for place in range(len(requests))]
