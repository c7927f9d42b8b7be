"""Rollouts: the current policy answers the round's prompts, and its answers are published shard by shard."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from reval_core.facts import FactFile, read_table
from reval_core.files import digest
from reval_core.groups import Group, cut_off_groups
from reval_core.problems import Problem
from reval_core.session import Policy, Session
from reval_core.stages.shards import Shards
from reval_core.stages.stage import Outcome, settings, stage
from reval_core.trajectories import Asked, response_table


def _inputs(session: Session, round: int, policy: Policy) -> list[Any]:
    config = session.config
    carried = _carried(session, round)
    return [
        policy.identity,
        [asdict(problem) for problem in _new_problems(session, round)],
        [carried.content] if carried else [],
        *map(settings, (config.rollouts, config.problems.prompt)),
        config.engine.kind,
        config.seed,
    ]


@stage(inputs=_inputs)
def rollouts(session: Session, round: int, policy: Policy) -> Outcome:
    """Generate the round's shards. Those that a crashed attempt has finished are kept.

    A shard holds whole groups, `prompts_per_shard` of them: of an engine that streams, those that are done first.
    Groups in which a budget cuts a response off become `partials`; the next round goes on with them.
    """
    groups = _groups(session, round)
    shards = Shards(session, round, rollouts.key(session, round, policy))
    waiting = {number: group for number, group in enumerate(groups) if number not in shards.groups()}
    size = session.config.generation.prompts_per_shard or session.config.generation.prompts
    ready: list[int] = []

    def publish() -> None:
        done = [waiting.pop(number) for number in sorted(ready)]
        shards.publish(lambda shard: _table(session, round, policy, shard, shard * size, done), sorted(ready))
        ready.clear()

    with closing(_finished_groups(session, round, policy, waiting)) as finished:
        for number in finished:
            ready.append(number)
            if len(ready) == size:
                publish()
    if ready:
        publish()
    outcome = shards.outcome()
    if waiting:
        rows = _table(session, round, policy, None, len(groups) - len(waiting), list(waiting.values()))
        outcome.files.append(shards.publish_partials(rows))
    outcome.info |= {
        "engine": session.generating().name,
        "prompts_asked": _asked_before(session, round) + len(_new_problems(session, round)),
        "groups_cut_off": len(waiting),
    }
    return outcome


def request_seed(session: Session, purpose: str, round: int, problem: Problem, sample: int) -> int:
    """The seed of one response: a function of (run, purpose, round, prompt, sample)."""
    return int(digest(session.config.seed, purpose, round, problem.prompt_id, sample)[:15], 16)


def _groups(session: Session, round: int) -> list[Group]:
    """What the round asks for: groups that the round before was cut off in, then new ones."""
    samples = session.config.generation.samples
    carried = _carried(session, round)
    old = cut_off_groups(read_table(session.folder.path / carried.path), samples) if carried else []
    groups = [
        group.reseeded([request_seed(session, "continued", round, one.problem, one.sample) for one in group.asked])
        for group in old
    ]
    for problem in _new_problems(session, round):
        text, tokens = session.prompt(problem.problem)
        asked = [
            Asked(
                problem=problem,
                sample=sample,
                prompt=text,
                prompt_tokens=tokens,
                seed=request_seed(session, "rollout", round, problem, sample),
            )
            for sample in range(samples)
        ]
        groups.append(Group.new(asked))
    return groups


def _new_problems(session: Session, round: int) -> list[Problem]:
    """The problems that are asked for the first time: with those carried over as many as the config says."""
    prompts, carried = session.config.generation.prompts, _carried(session, round)
    old = carried.rows // session.config.generation.samples if carried else 0
    return session.order.take(_asked_before(session, round), prompts - old, prompts)


def _asked_before(session: Session, round: int) -> int:
    """How many problems the rounds before this one have asked."""
    if not session.config.generation.cut_off:
        return (round - 1) * session.config.generation.prompts
    before = session.folder.manifest("rollouts", round - 1)
    return 0 if before is None else int(before.info["prompts_asked"])


def _carried(session: Session, round: int) -> FactFile | None:
    """The groups that the round before was cut off in."""
    before = session.folder.manifest("rollouts", round - 1) if session.config.generation.cut_off else None
    return next(iter(before.files_of("partials")), None) if before else None


def _finished_groups(session: Session, round: int, policy: Policy, groups: dict[int, Group]) -> Generator[int]:
    """Let the engine answer what is open in these groups; gives each group's number once all of it has ended."""
    places = [(number, one) for number, group in groups.items() for one in group.unfinished]
    requests = [groups[number].request(one) for number, one in places]
    started = time.monotonic()
    settings = session.config.generation

    def enough(tokens: int) -> bool:
        """Whether the budget is used up. No round ends without a finished group."""
        if not any(group.finished for group in groups.values()):
            return False
        seconds = time.monotonic() - started
        return tokens >= (settings.budget_tokens or tokens + 1) or seconds >= (
            settings.budget_seconds or seconds + 1
        )

    completions = session.generate(policy, requests, enough if settings.cut_off else None)
    for ended, (place, completion) in enumerate(completions, start=1):
        number, one = places[place]
        group = groups[number]
        group.add(one, completion, policy.round)
        session.tick(ended, len(requests))
        if group.finished:
            yield number


def _table(
    session: Session, round: int, policy: Policy, shard: int | None, before: int, groups: list[Group]
) -> pa.Table:
    """Groups as rows; so many groups of the round are `before` them. Every shard but the last is full."""
    responses = [
        (asked, written) for group in groups for asked, written in zip(group.asked, group.written, strict=True)
    ]
    return response_table(
        [asked for asked, _ in responses],
        [written for _, written in responses if written is not None],
        session.tokenizer,
        round=round,
        shard=shard,
        first=before * session.config.generation.samples,
        policy=policy.identity,
        engine=session.generating().name,
        temperature=session.config.generation.temperature,
    )
