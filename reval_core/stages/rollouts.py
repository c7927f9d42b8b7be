"""Rollouts: the current policy answers the round's prompts, one Parquet shard after the other."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from reval_core.engines.base import Request, Sampling
from reval_core.facts import FactFile, publish_table
from reval_core.files import digest, file_digest, publish_sealed, read_sealed
from reval_core.problems import Problem
from reval_core.session import Policy, Session
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
    asked = _asked(session, round)
    size, round_key = session.config.rollouts.batch, rollouts.key(session, round, policy)
    shards = [asked[start : start + size] for start in range(0, len(asked), size)]
    files, seconds, reused = [], 0.0, 0
    for number, batch in enumerate(shards):
        session.tick(number, len(shards))
        key = digest(round_key, number)
        path = session.folder.path / session.folder.shard(round, number)
        note = path.with_suffix(".json")
        found = _finished(session, note, key)
        if found is None:
            started = time.perf_counter()
            file = _generate(session, round, policy, number, number * size, batch)
            found = {"key": key, "seconds": time.perf_counter() - started, "file": asdict(file)}
            publish_sealed(note, found)
        else:
            reused += 1
        files.append(FactFile(**found["file"]))
        seconds += found["seconds"]
    info = {"engine": session.engine.name, "generation_seconds": seconds, "shards_reused": reused}
    return Outcome(files, info)


def request_seed(session: Session, purpose: str, round: int, problem: Problem, sample: int) -> int:
    """The seed of one response: a function of (run, purpose, round, prompt, sample)."""
    return int(digest(session.config.seed, purpose, round, problem.prompt_id, sample)[:15], 16)


def _problems(session: Session, round: int) -> list[Problem]:
    return session.order.round(round, session.config.rollouts.prompts)


def _asked(session: Session, round: int) -> list[Asked]:
    asked = []
    for problem in _problems(session, round):
        text, tokens = session.prompt(problem.problem)
        for sample in range(session.config.rollouts.samples):
            seed = request_seed(session, "rollout", round, problem, sample)
            asked.append(Asked(problem, sample, text, Request(tokens, seed)))
    return asked


def _finished(session: Session, note: Any, key: str) -> dict[str, Any] | None:
    """The note of a shard that an earlier attempt published whole, if its bytes are still those."""
    if not note.exists():
        return None
    found = read_sealed(note)
    path = session.folder.path / found["file"]["path"]
    whole = found["key"] == key and path.exists() and file_digest(path) == found["file"]["sha256"]
    return found if whole else None


def _generate(session: Session, round: int, policy: Policy, shard: int, first: int, asked: list[Asked]) -> FactFile:
    sampling = Sampling(session.config.rollouts.temperature, session.config.rollouts.max_tokens)
    completions = session.generate(policy, [one.request for one in asked], sampling)
    rows = shard_table(
        asked,
        completions,
        session.tokenizer,
        round=round,
        shard=shard,
        first=first,
        policy=policy.identity,
        engine=session.engine.name,
        temperature=sampling.temperature,
    )
    return publish_table(session.folder.path, session.folder.shard(round, shard), "trajectories", rows)
