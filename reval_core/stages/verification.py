"""Verification: a verdict for each trajectory, and the resulting reward for the learner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reval_core.atomic_files import publish_sealed, read_sealed
from reval_core.config import Config, Reward, Verification
from reval_core.errors import RunStopped
from reval_core.pipeline.run_context import RunContext
from reval_core.stages.stage import Outcome, publish, settings, stage
from reval_core.storage.tables import Manifest, TableFile, read_table
from reval_core.user_code import code_identity
from reval_core.verification import VERIFIER_VERSION, Claim, Judgement, rewards

_COLUMNS = (
    "trajectory_id",
    "round",
    "prompt_id",
    "problem",
    "gold",
    "gold_mode",
    "given_reward",
    "response",
    "response_length",
    "finish_reason",
)


def judging(config: Config) -> list[Any]:
    """What a verdict depends on besides the response."""
    code = code_identity(config.reward.function)
    return [settings(config.verification), settings(config.reward), code, VERIFIER_VERSION]


def _inputs(context: RunContext, round: int, rollouts: Manifest) -> list[Any]:
    return [rollouts.digest, *judging(context.config)]


@stage(inputs=_inputs)
def verification(context: RunContext, round: int, rollouts: Manifest) -> Outcome:
    """Judge the round's responses.

    Raises:
        RunStopped: If too many responses could not be judged (their reward is unknown, not 0) or, with dynamic
            sampling, if no group has signal.
    """
    config = context.config
    shards = rollouts.files_of("trajectories")
    rows, judgements = judged(context, shards)
    try:
        stop_if_unjudged(f"round {round}", config.verification, judgements)
    except RunStopped:  # a resumed run judges them again
        for file in shards:
            _note(context, file).unlink(missing_ok=True)
        raise
    table = verdict_table(
        rows,
        judgements,
        config.reward,
        max_tokens=config.rollouts.max_tokens,
        dynamic=config.samples_dynamically,
    )
    if pc.all(table.column("replaced")).as_py():
        raise RunStopped(
            f"round {round}: in each of its {len(set(rows['prompt_id']))} groups all responses have the same "
            "reward, so there is nothing to learn from; use easier or harder problems or more rollouts.samples, or "
            "remove rollouts.dynamic_sampling"
        )
    return Outcome([publish(context, round, "verdicts", table)])


def judged(context: RunContext, shards: Sequence[TableFile]) -> tuple[dict[str, list[Any]], list[Judgement]]:
    """The responses in shards, as columns, and the judgement of each.

    With dynamic sampling a round's prompts depend on its verdicts. The judgements of a shard are then recorded
    alongside it, and reused.
    """
    parts = [read_table(context.directory.path / file.path, _COLUMNS) for file in shards]
    rows = pa.concat_tables(parts).to_pydict()
    if not context.config.samples_dynamically:
        return rows, with_given(rows, context.verifier.judge(claims_of(rows)))
    return rows, [
        one for file, part in zip(shards, parts, strict=True) for one in _noted(context, file, part.to_pydict())
    ]


def _noted(context: RunContext, shard: TableFile, rows: Mapping[str, Sequence[Any]]) -> list[Judgement]:
    """The judgements on a shard's responses: read from its record, or made and recorded now."""
    note = _note(context, shard)
    if note.exists():
        recorded = read_sealed(note)
        if recorded["content"] == shard.content:
            return [Judgement(*one) for one in recorded["judgements"]]
    judgements = context.verifier.judge(claims_of(rows))
    publish_sealed(note, {"content": shard.content, "judgements": [astuple(one) for one in judgements]})
    return judgements


def _note(context: RunContext, shard: TableFile) -> Path:
    place = context.directory.path / shard.path
    return place.with_name(place.name.replace("shard-", "judged-")).with_suffix(".json")


def with_given(rows: Mapping[str, Sequence[Any]], judged: Iterable[Judgement]) -> list[Judgement]:
    """The judgement of each trajectory: from `judged` (those of `claims_of`) or, without a gold, `given`."""
    judgements = iter(judged)
    return [Judgement("given", None, 0.0) if gold is None else next(judgements) for gold in rows["gold"]]


def verdict_table(
    rows: Mapping[str, Sequence[Any]],
    judgements: Sequence[Judgement],
    reward: Reward,
    *,
    max_tokens: int | None,
    dynamic: bool,
) -> pa.Table:
    """Rows of the table `verdicts`: the verdicts on a round's trajectories, and the resulting rewards.

    Args:
        rows: The trajectories, as columns.
        judgements: The judgement of each.
        reward: The section `reward` of the config.
        max_tokens: The maximum length of a response, needed only by `reward.overlong`.
        dynamic: Whether groups without signal are replaced.
    """
    verdicts = [judgement.verdict for judgement in judgements]
    given, is_given = np.array(rows["given_reward"], dtype=float), np.array(verdicts) == "given"
    outcome = np.where(is_given, given, rewards.outcomes(judgements, reward))
    penalty = _penalties(rows, outcome, is_given, reward, max_tokens)
    paid = outcome if penalty is None else np.where(is_given, given, rewards.penalised(outcome, penalty, reward))
    rewarded = np.where(is_given, given, rewards.rewards(paid, rows["prompt_id"], reward))
    advantage = rewards.advantages(paid, rows["prompt_id"])
    return pa.table(
        {
            "trajectory_id": rows["trajectory_id"],
            "round": rows["round"],
            "verdict": verdicts,
            "extracted": [judgement.extracted for judgement in judgements],
            "correct": pa.array([verdict == "correct" for verdict in verdicts], mask=is_given),
            "outcome": pa.array(outcome, mask=np.isnan(outcome)),
            "overlong_penalty": pa.nulls(len(verdicts))
            if penalty is None
            else pa.array(penalty, mask=np.isnan(penalty)),
            "reward": pa.array(rewarded, mask=np.isnan(rewarded)),
            "advantage": pa.array(advantage, mask=np.isnan(advantage)),
            "replaced": rewards.without_signal(outcome, rows["prompt_id"]) & dynamic,
            "milliseconds": [judgement.milliseconds for judgement in judgements],
        }
    )


def _penalties(
    rows: Mapping[str, Sequence[Any]],
    outcome: np.ndarray,
    is_given: np.ndarray,
    reward: Reward,
    max_tokens: int | None,
) -> np.ndarray | None:
    """The overlong penalties of responses [B]; NaN where the reward is not computed; None without the setting."""
    if reward.overlong is None:
        return None
    assert max_tokens is not None, "an overlong penalty without a limit is rejected at load"
    penalties = rewards.overlong_penalties(rows["response_length"], reward.overlong, max_tokens)
    return np.where(is_given | np.isnan(outcome), np.nan, penalties)


def claims_of(rows: Mapping[str, Sequence[Any]]) -> list[Claim]:
    """The claims of the trajectories that have a gold."""
    columns = ("gold", "response", "finish_reason", "gold_mode", "problem")
    return [
        Claim(gold, response, reason == "length", mode, problem)
        for gold, response, reason, mode, problem in zip(*(rows[name] for name in columns), strict=True)
        if gold is not None
    ]


def stop_if_unjudged(work: str, settings: Verification, judgements: Sequence[Judgement]) -> None:
    """Raise RunStopped if too many responses could not be judged: their correctness is unknown, not wrong."""
    verdicts = [judgement.verdict for judgement in judgements]
    unjudged = sum(verdict in ("timeout", "error") for verdict in verdicts)
    if unjudged > settings.unjudged_limit * len(verdicts):
        raise RunStopped(
            f"{work}: {unjudged} of {len(verdicts)} responses could not be judged "
            f"({verdicts.count('timeout')} timeouts, {verdicts.count('error')} errors), more than "
            f"verification.unjudged_limit ({settings.unjudged_limit:.0%}); raise verification.timeout_seconds or "
            "memory_mb, or inspect the responses with reval sql"
        )
