"""Verification: a verdict for each trajectory, and from it the reward that the learner is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from reval_core import rewards
from reval_core.config import Reward, Verification
from reval_core.errors import RunStopped
from reval_core.facts import Manifest, read_table
from reval_core.session import Session
from reval_core.stages.stage import Outcome, publish, settings, stage
from reval_core.user_code import code_identity
from reval_core.verification import VERIFIER_VERSION, Claim, Judgement


def _inputs(session: Session, round: int, rollouts: Manifest) -> list[Any]:
    config = session.config
    code = code_identity(config.reward.function)
    return [rollouts.digest, settings(config.verification), settings(config.reward), code, VERIFIER_VERSION]


@stage(inputs=_inputs)
def verification(session: Session, round: int, rollouts: Manifest) -> Outcome:
    """Judge the round's responses.

    Raises RunStopped if too many could not be judged: their reward is unknown, not 0.
    """
    columns = (
        "trajectory_id",
        "round",
        "prompt_id",
        "problem",
        "gold",
        "gold_mode",
        "given_reward",
        "response",
        "finish_reason",
    )
    files = rollouts.files_of("trajectories")
    shards = [read_table(session.folder.path / file.path, columns) for file in files]
    rows = pa.concat_tables(shards).to_pydict()
    judgements = with_given(rows, session.verifier.judge(claims_of(rows)))
    stop_if_unjudged(f"round {round}", session.config.verification, judgements)
    return Outcome([publish(session, round, "verdicts", verdict_table(rows, judgements, session.config.reward))])


def with_given(rows: Mapping[str, Sequence[Any]], judged: Iterable[Judgement]) -> list[Judgement]:
    """What is known of each trajectory's response: of `claims_of` what was judged, else what was given with it."""
    judgements = iter(judged)
    return [Judgement("given", None, 0.0) if gold is None else next(judgements) for gold in rows["gold"]]


def verdict_table(rows: Mapping[str, Sequence[Any]], judgements: Sequence[Judgement], reward: Reward) -> pa.Table:
    """The verdicts on a round's trajectories, and the rewards that they give."""
    verdicts = [judgement.verdict for judgement in judgements]
    given, is_given = np.array(rows["given_reward"], dtype=float), np.array(verdicts) == "given"
    outcome = np.where(is_given, given, rewards.outcomes(judgements, reward))
    rewarded = np.where(is_given, given, rewards.rewards(outcome, rows["prompt_id"], reward))
    advantage = rewards.advantages(outcome, rows["prompt_id"])
    return pa.table(
        {
            "trajectory_id": rows["trajectory_id"],
            "round": rows["round"],
            "verdict": verdicts,
            "extracted": [judgement.extracted for judgement in judgements],
            "correct": pa.array([verdict == "correct" for verdict in verdicts], mask=is_given),
            "reward": pa.array(rewarded, mask=np.isnan(rewarded)),
            "advantage": pa.array(advantage, mask=np.isnan(advantage)),
            "milliseconds": [judgement.milliseconds for judgement in judgements],
        }
    )


def claims_of(rows: Mapping[str, Sequence[Any]]) -> list[Claim]:
    """The claims of those rows of trajectories that have a gold."""
    columns = ("gold", "response", "finish_reason", "gold_mode", "problem")
    return [
        Claim(gold, response, reason == "length", mode, problem)
        for gold, response, reason, mode, problem in zip(*(rows[name] for name in columns), strict=True)
        if gold is not None
    ]


def stop_if_unjudged(work: str, settings: Verification, judgements: Sequence[Judgement]) -> None:
    """Raise RunStopped if too many could not be judged: nothing is known of them, and wrong is not the word."""
    verdicts = [judgement.verdict for judgement in judgements]
    unjudged = sum(verdict in ("timeout", "error") for verdict in verdicts)
    if unjudged > settings.unjudged_limit * len(verdicts):
        raise RunStopped(
            f"{work}: {unjudged} of {len(verdicts)} responses could not be judged "
            f"({verdicts.count('timeout')} timeouts, {verdicts.count('error')} errors), more than "
            f"verification.unjudged_limit ({settings.unjudged_limit:.0%}); raise verification.timeout_seconds or "
            "memory_mb, or look at the responses with reval sql"
        )
