"""Evaluation in offline training: the residuals of all trajectories under the current policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reval_core.objectives import residual
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.stages.consistency import scoring_settings
from reval_core.stages.noise import texts_of
from reval_core.stages.reference_reset import live_trajectories
from reval_core.stages.stage import Outcome, Stage, publish, settings
from reval_core.storage.tables import Manifest


def _inputs(context: RunContext, round: int, policy: Policy, reference: Policy, scores: Manifest) -> list[Any]:
    config = context.config
    return [
        policy.identity,
        reference.identity,
        scores.digest,
        settings(context.objective),
        scoring_settings(config),
    ]


def _work(context: RunContext, round: int, policy: Policy, reference: Policy, scores: Manifest) -> Outcome:
    """The residual of every live trajectory under `policy`; `info["delta_abs"]` is the mean of |Δ|."""
    rows = _as_scored(context) if round == 0 else _under(context, policy)
    mean = (
        np.abs(rows.column("delta").drop_null().to_numpy()).mean()
        if context.config.objective.has_residual
        else None
    )
    count = len(rows)
    columns = {"round": pa.array([round] * count), "update": pa.nulls(count)}
    columns |= {name: rows.column(name) for name in rows.column_names} | {"writer_log_ratio": pa.nulls(count)}
    file = publish(context, round, "residuals", pa.table(columns), name="stored_residuals")
    return Outcome([file], {"delta_abs": None if mean is None else float(mean)})


def _as_scored(context: RunContext) -> pa.Table:
    """Before training: the residuals that the stage consistency has just computed."""
    return context.store.query(
        """
        SELECT s.trajectory_id, s.delta, s.value_term, s.log_ratio
        FROM buffer JOIN scores s USING (trajectory_id)
        WHERE s.round = 0 ORDER BY s.trajectory_id
        """
    )


def _under(context: RunContext, policy: Policy) -> pa.Table:
    """The residuals under `policy`, with the stored scores of the reference."""
    live, rows = live_trajectories(context)
    log_policy, value = (torch.empty(len(live)) for _ in range(2))
    for chosen, _, scores in context.scores(context.by_policy(policy), texts_of(rows), tick=context.tick):
        log_policy[chosen], value[chosen] = scores.log_policy, scores.value
    log_ref, value_ref, reward = (
        torch.from_numpy(live.column(name).to_numpy().copy()) for name in ("log_ref", "value_ref", "reward")
    )
    objective = context.objective
    found = residual(objective.kind, log_policy, log_ref, value, value_ref, reward, objective.beta)
    return pa.table(
        {
            "trajectory_id": live.column("trajectory_id"),
            "delta": found.delta.numpy() if objective.has_residual else pa.nulls(len(live)),
            "value_term": found.value_term.numpy(),
            "log_ratio": found.log_ratio.numpy(),
        }
    )


residual_evaluation = Stage("evaluation", _inputs, _work)
"""The evaluation of an offline run. Inputs: context, round, policy, reference, manifest of scores."""
