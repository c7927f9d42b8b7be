"""Rollouts: the current policy answers the round's prompts, one Parquet shard after the other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pyarrow as pa

from reval_core.engines.base import Request, Sampling
from reval_core.files import digest
from reval_core.problems import Problem
from reval_core.session import Policy, Session
from reval_core.stages.shards import publish_shards
from reval_core.stages.stage import Outcome, settings, stage
from reval_core.trajectories import Asked, shard_table


def _inputs(session: Session, round: int, policy: Policy) -> list[Any]:
    config = session.config
    problems = [asdict(problem) for problem in _problems(session, round)]
    sections = (config.rollouts, config.engine, config.problems.prompt)
    return [policy.identity, problems, *map(settings, sections), config.seed]


@stage(inputs=_inputs)
def rollouts(session: Session, round: int, policy: Policy) -> Outcome:
    """Generate the round's shards. A shard that a crashed attempt has finished is kept."""
    asked, engine = _asked(session, round), session.generating()
    size = session.config.generation.batch

    def make(shard: int, first: int) -> pa.Table:
        return _generate(session, round, policy, shard, first, asked[first : first + size])

    outcome = publish_shards(session, round, rollouts.key(session, round, policy), -(-len(asked) // size), make)
    outcome.info["engine"] = engine.name
    return outcome


def request_seed(session: Session, purpose: str, round: int, problem: Problem, sample: int) -> int:
    """The seed of one response: a function of (run, purpose, round, prompt, sample)."""
    return int(digest(session.config.seed, purpose, round, problem.prompt_id, sample)[:15], 16)


def _problems(session: Session, round: int) -> list[Problem]:
    return session.order.round(round, session.config.generation.prompts)


def _asked(session: Session, round: int) -> list[Asked]:
    asked = []
    for problem in _problems(session, round):
        text, tokens = session.prompt(problem.problem)
        for sample in range(session.config.generation.samples):
            seed = request_seed(session, "rollout", round, problem, sample)
            asked.append(Asked(problem, sample, text, Request(tokens, seed)))
    return asked


def _generate(session: Session, round: int, policy: Policy, shard: int, first: int, asked: list[Asked]) -> pa.Table:
    generation = session.config.generation
    sampling = Sampling(generation.temperature, generation.max_tokens)
    completions = session.generate(policy, [one.request for one in asked], sampling)
    return shard_table(
        asked,
        completions,
        session.tokenizer,
        round=round,
        shard=shard,
        first=first,
        policy=policy.identity,
        engine=session.generating().name,
        temperature=sampling.temperature,
    )
