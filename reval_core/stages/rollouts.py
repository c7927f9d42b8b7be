"""Rollouts: the current policy responds to the round's prompts, and the responses are published in shards."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import pyarrow as pa

from reval_core.atomic_files import digest
from reval_core.config import Rollouts
from reval_core.errors import CorruptData
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.problems import Problem
from reval_core.replay_buffer.groups import Group, cut_off_groups, finished_groups, requests_and_responses
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND, SampleRequest, response_table
from reval_core.stages.shards import Shards
from reval_core.stages.stage import Outcome, settings, stage
from reval_core.stages.verification import judged, judging
from reval_core.storage.tables import TableFile, read_table
from reval_core.verification.rewards import outcomes, without_signal


def _inputs(context: RunContext, round: int, policy: Policy) -> list[Any]:
    config = context.config
    carried = _carried(context, round)
    return [
        policy.identity,
        [problem.content() for problem in _Problems(context, round).first_wave()],
        [carried.content] if carried else [],
        *map(settings, (config.rollouts, config.problems.prompt)),
        config.engine.kind,
        config.seed,
        *(judging(config) if config.samples_dynamically else []),
    ]


@stage(inputs=_inputs)
def rollouts(context: RunContext, round: int, policy: Policy) -> Outcome:
    """Generate the round's shards. Finished shards of a crashed attempt are kept.

    A shard contains `prompts_per_shard` whole groups; with a streaming engine, those that finish first. Groups with
    a response that is cut off by a budget become `partials`, which the next round continues. With dynamic sampling
    the round proceeds in waves: each wave requests as many further problems as groups with signal are missing.
    """
    engine = context.generating()
    if engine.streams and context.directory.manifest("rollouts", round) is not None:
        raise CorruptData(
            f"{context.directory.manifest_path('rollouts', round).parent}: a shard is missing, and generation with "
            f"engine {engine.name} is not reproducible; restore the shard from a backup, or start a new run"
        )
    shards = Shards(
        context.directory,
        round,
        rollouts.key(context, round, policy),
        writer=policy.round,
        gapless=engine.streams,
    )
    problems = _Problems(context, round)
    groups = [*_carried_groups(context, round), *_new_groups(context, round, problems.first_wave())]
    waiting = _generate(context, round, policy, shards, dict(enumerate(groups)))
    waves, requested = 1, len(groups)
    while missing := _missing_groups(context, shards, waves, requested):
        more = _new_groups(context, round, problems.take(missing))
        _generate(context, round, policy, shards, dict(enumerate(more, start=requested)))
        waves, requested = waves + 1, requested + missing
    outcome = shards.outcome()
    outcome.info |= {
        "engine": engine.name,
        "prompts_asked": problems.passed,
        "groups_cut_off": len(waiting),
        "waves": waves,
    }
    return outcome


def _generate(
    context: RunContext, round: int, policy: Policy, shards: Shards, groups: Mapping[int, Group]
) -> dict[int, Group]:
    """Generate and publish the groups that are in no shard yet. Returns those that a budget cut off."""
    waiting = {number: group for number, group in groups.items() if number not in shards.groups()}
    size = context.config.generation.prompts_per_shard or context.config.generation.prompts
    table = partial(_table, context, round, policy)
    with closing(_finished(context, policy, waiting, bool(shards.groups()))) as finished:
        shards.publish_finished(waiting, finished, size, table)
    if waiting:
        shards.publish_partials(lambda first: table(None, first, list(waiting.values())))
    return waiting


def _missing_groups(context: RunContext, shards: Shards, waves: int, requested: int) -> int:
    """The size of the next wave after `waves` waves and `requested` groups; 0 without dynamic sampling."""
    settings = context.config.generation
    if settings.dynamic_sampling is None or waves > settings.dynamic_sampling.waves:
        return 0
    rows, judgements = judged(
        context, shards.files(groups=requested)
    )  # a crashed attempt may have left shards of later waves
    shards.restart_clock()
    useless = without_signal(outcomes(judgements, context.config.reward), rows["prompt_id"])
    with_signal = len({prompt for prompt, one in zip(rows["prompt_id"], useless, strict=True) if not one})
    return settings.prompts - with_signal


def request_seed(context: RunContext, purpose: str, round: int, problem: Problem, sample: int) -> int:
    """The seed of one response: a function of (run, purpose, round, prompt, sample)."""
    return int(digest(context.config.seed, purpose, round, problem.prompt_id, sample)[:15], 16)


def _carried_groups(context: RunContext, round: int) -> list[Group]:
    """The groups that were cut off in the previous round, reseeded."""
    carried = _carried(context, round)
    if carried is None:
        return []
    old = cut_off_groups(read_table(context.directory.path / carried.path), context.config.generation.samples)
    return [
        group.reseeded(
            [request_seed(context, "continued", round, one.problem, one.sample) for one in group.requests]
        )
        for group in old
    ]


def _new_groups(context: RunContext, round: int, problems: Sequence[Problem]) -> list[Group]:
    """A group for each of these problems."""
    groups = []
    for problem in problems:
        text, tokens = context.prompts[problem.problem]
        requests = [
            SampleRequest(
                problem=problem,
                sample=sample,
                prompt=text,
                prompt_tokens=tokens,
                seed=request_seed(context, "rollout", round, problem, sample),
            )
            for sample in range(context.config.generation.samples)
        ]
        groups.append(Group.new(requests))
    return groups


class _Problems:
    """A round's iterator over the order of problems. Skips problems of the round, including those carried over."""

    def __init__(self, context: RunContext, round: int) -> None:
        carried = _carried(context, round)
        self.passed = _asked_before(context, round)
        """The position in the order of problems: the number passed by the run so far."""
        self._asked: set[str] = set()
        if carried is not None:
            self._asked |= set(
                read_table(context.directory.path / carried.path, ("prompt_id",)).column(0).to_pylist()
            )
        self._order = context.order
        self._prompts = context.config.generation.prompts

    def first_wave(self) -> list[Problem]:
        """The problems of the first wave: together with the groups carried over, `rollouts.prompts`."""
        return self.take(self._prompts - len(self._asked))

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems that this round has not used."""
        problems: list[Problem] = []
        while len(problems) < count:
            (problem,) = self._order.take(self.passed, 1, self._prompts)
            self.passed += 1
            if problem.prompt_id not in self._asked:
                self._asked.add(problem.prompt_id)
                problems.append(problem)
        return problems


def _asked_before(context: RunContext, round: int) -> int:
    """The position in the order of problems at the start of a round."""
    generation = context.config.generation
    if not generation.cut_off and generation.dynamic_sampling is None:
        return (round - 1) * generation.prompts
    before = context.directory.manifest("rollouts", round - 1)
    return 0 if before is None else int(before.info["prompts_asked"])


def _carried(context: RunContext, round: int) -> TableFile | None:
    """The file of groups that were cut off in the previous round, if any."""
    before = context.directory.manifest("rollouts", round - 1) if context.config.generation.cut_off else None
    return next(iter(before.files_of("partials")), None) if before else None


class _Budget:
    """Whether a round has used up its generation budget. The clock starts at the first call."""

    def __init__(self, settings: Rollouts, may_end: bool) -> None:
        self.may_end = may_end
        """Whether the round has a finished group; without one it is not cut off."""
        self._tokens = settings.budget_tokens or math.inf
        self._seconds = settings.budget_seconds or math.inf
        self._started: float | None = None

    def __call__(self, tokens: int) -> bool:
        if self._started is None:
            self._started = time.monotonic()
        used_up = tokens >= self._tokens or time.monotonic() - self._started >= self._seconds
        return self.may_end and used_up


def _finished(context: RunContext, policy: Policy, groups: dict[int, Group], begun: bool) -> Generator[int]:
    """Generate the incomplete responses of these groups, and yield the number of each group when it is complete.

    `begun` says whether the round already has complete groups.
    """
    settings = context.config.generation
    budget = _Budget(settings, begun) if settings.cut_off else None
    for number in finished_groups(
        groups, policy.round, lambda requests: context.generate(policy, requests, budget), context.tick
    ):
        if budget is not None:
            budget.may_end = True
        yield number


def _table(
    context: RunContext, round: int, policy: Policy, shard: int | None, first: int, groups: Sequence[Group]
) -> pa.Table:
    """The rows of groups; `first` is the index of the first row within the round."""
    return response_table(
        *requests_and_responses(groups),
        context.tokenizer,
        round=round,
        shard=shard,
        first_id=round * IDS_PER_ROUND + first,
        policy=policy.identity,
        engine=context.generating().name,
        temperature=context.config.generation.temperature,
    )
