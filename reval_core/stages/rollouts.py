"""Rollouts: the current policy responds to the round's prompts, and the responses are published in shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from reval_core.atomic_files import digest
from reval_core.engines.response import Response
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.problems import Problem
from reval_core.replay_buffer.trajectories import response_table, responses_of
from reval_core.stages.generation import Budget, Group, Shards, new_group, seeded
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
    key = rollouts.key(context, round, policy)
    shards = Shards.of_engine(context.directory, round, key, engine, policy.round, "start a new run")
    problems = _Problems(context, round)
    groups = [*_carried_groups(context, round), *_new_groups(context, round, problems.first_wave())]
    cut_off = _generate(context, round, policy, shards, dict(enumerate(groups)))
    waves, requested = 1, len(groups)
    while missing := _missing_groups(context, shards, waves, requested):
        more = _new_groups(context, round, problems.take(missing))
        _generate(context, round, policy, shards, dict(enumerate(more, start=requested)))
        waves, requested = waves + 1, requested + missing
    outcome = shards.outcome(engine.name)
    outcome.info |= {"prompts_asked": problems.passed, "groups_cut_off": len(cut_off), "waves": waves}
    return outcome


def _generate(
    context: RunContext, round: int, policy: Policy, shards: Shards, groups: Mapping[int, Group]
) -> dict[int, Group]:
    """Generate and publish the groups that are in no shard yet. Returns those that a budget cut off."""
    settings = context.config.generation
    rows = partial(
        response_table,
        tokenizer=context.tokenizer,
        round=round,
        policy=policy.identity,
        engine=context.generating().name,
        temperature=settings.temperature,
    )
    size = settings.prompts_per_shard or settings.prompts
    budget = Budget(settings) if settings.cut_off else None
    return shards.generate(groups, size, partial(context.generate, policy), rows, budget)


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


def request_seed(context: RunContext, purpose: str, round: int, request: Response) -> int:
    """The seed of one response: a function of (run, purpose, round, prompt, sample)."""
    return int(digest(context.config.seed, purpose, round, request.prompt_id, request.sample)[:15], 16)


def _carried_groups(context: RunContext, round: int) -> list[Group]:
    """The groups that were cut off in the previous round."""
    carried = _carried(context, round)
    if carried is None:
        return []
    responses = responses_of(read_table(context.directory.path / carried.path))
    size, seed = context.config.generation.samples, partial(request_seed, context, "continued", round)
    return [seeded(responses[first : first + size], seed) for first in range(0, len(responses), size)]


def _new_groups(context: RunContext, round: int, problems: Sequence[Problem]) -> list[Group]:
    """A group for each of these problems."""
    samples, seed = range(context.config.generation.samples), partial(request_seed, context, "rollout", round)
    return [new_group(problem, samples, context.prompts, seed) for problem in problems]


class _Problems:
    """A round's iterator over the order of problems. Skips problems of the round, including those carried over."""

    def __init__(self, context: RunContext, round: int) -> None:
        carried = _carried(context, round)
        self.passed = _position_before(context, round)
        """The position in the order of problems: the number passed by the run so far."""
        self._taken: set[str] = set()
        if carried is not None:
            self._taken |= set(
                read_table(context.directory.path / carried.path, ("prompt_id",)).column(0).to_pylist()
            )
        self._order = context.order
        self._prompts = context.config.generation.prompts

    def first_wave(self) -> list[Problem]:
        """The problems of the first wave: together with the groups carried over, `rollouts.prompts`."""
        return self.take(self._prompts - len(self._taken))

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems that this round has not used."""
        problems: list[Problem] = []
        while len(problems) < count:
            (problem,) = self._order.take(self.passed, 1, self._prompts)
            self.passed += 1
            if problem.prompt_id not in self._taken:
                self._taken.add(problem.prompt_id)
                problems.append(problem)
        return problems


def _position_before(context: RunContext, round: int) -> int:
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
