"""Evaluation: sampled accuracy of a policy on the held-out problems."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from reval_core.engines.base import Completion, Request
from reval_core.problems import problems_digest
from reval_core.session import Policy, Session
from reval_core.stages.rollouts import request_seed
from reval_core.stages.stage import Outcome, publish, settings, stage
from reval_core.verification import VERIFIER_VERSION, Claim


def _inputs(session: Session, round: int, policy: Policy) -> list[Any]:
    config = session.config
    return [
        policy.identity,
        problems_digest(session.held_out),
        *map(settings, (config.rollouts, config.problems.prompt, config.verification)),
        config.engine.kind,
        config.evaluation.samples,
        config.seed,
        VERIFIER_VERSION,
    ]


@stage(inputs=_inputs)
def evaluation(session: Session, round: int, policy: Policy) -> Outcome:
    """Ask every held-out problem `evaluation.samples` times; `info["accuracy"]` is the share that is right.

    The seeds do not depend on the round, so two evaluations differ by their policies alone.
    """
    samples = session.config.evaluation.samples
    asked = [(problem, sample) for problem in session.held_out for sample in range(samples)]
    prompts = {problem.prompt_id: session.prompt(problem.problem)[1] for problem in session.held_out}
    requests = [
        Request(prompts[problem.prompt_id], request_seed(session, "evaluation", 0, problem, sample))
        for problem, sample in asked
    ]
    completions = _generate(session, policy, requests)
    responses = session.tokenizer.batch_decode([one.tokens for one in completions], skip_special_tokens=True)
    claims = [
        Claim(
            gold=problem.answer,
            response=response,
            truncated=completion.finish_reason == "length",
            gold_mode=problem.gold_mode,
        )
        for (problem, _), response, completion in zip(asked, responses, completions, strict=True)
    ]
    judgements = session.verifier.judge(claims)
    correct = [judgement.verdict == "correct" for judgement in judgements]
    table = pa.table(
        {
            "round": [round] * len(asked),
            "policy": [policy.identity] * len(asked),
            "prompt_id": [problem.prompt_id for problem, _ in asked],
            "sample": [sample for _, sample in asked],
            "problem": [problem.problem for problem, _ in asked],
            "gold": [problem.answer for problem, _ in asked],
            "problem_set": [problem.problem_set for problem, _ in asked],
            "gold_mode": [problem.gold_mode for problem, _ in asked],
            "response": responses,
            "response_length": [len(completion.tokens) for completion in completions],
            "finish_reason": [completion.finish_reason for completion in completions],
            "verdict": [judgement.verdict for judgement in judgements],
            "extracted": [judgement.extracted for judgement in judgements],
            "correct": correct,
        }
    )
    return Outcome([publish(session, round, "evaluations", table)], {"accuracy": sum(correct) / len(correct)})


def _generate(session: Session, policy: Policy, requests: list[Request]) -> list[Completion]:
    """One completion a request, in order."""
    completions: dict[int, Completion] = {}
    for place, completion in session.generate(policy, requests):
        completions[place] = completion
        session.tick(len(completions), len(requests))
    return [completions[place] for place in range(len(requests))]
