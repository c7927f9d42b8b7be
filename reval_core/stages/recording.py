"""Recording: one row of metrics per round, from which curves, tracking and the summary are derived."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from reval_core.learning.off_policy import QUANTILES, effective_share
from reval_core.pipeline.run_context import RunContext
from reval_core.stages.stage import Outcome, publish, stage
from reval_core.storage.tables import SCHEMAS, Manifest

TIMED = ("rollouts", "verification", "consistency", "sampling", "learning", "evaluation")
"""The stages that have a column of seconds in the table `rounds`."""

# Means over the round's fresh trajectories, and over its draws and updates.
_METRICS = """
    WITH fresh AS (
        SELECT t.*, v.correct, v.verdict, v.reward, v.overlong_penalty, v.replaced,
               s.delta, s.log_ratio, s.entropy, s.engine_gap, s.engine_kl, s.kl_k1, s.kl_k3
        FROM trajectories t
        JOIN verdicts v USING (trajectory_id)
        JOIN scores s ON s.trajectory_id = t.trajectory_id AND s.round = t.round AND s.policy = t.policy
        WHERE t.round = $round
    )
    SELECT
        count(*) AS trajectories,
        coalesce(sum(response_length), 0)::BIGINT AS tokens,
        avg(correct::INTEGER) AS accuracy,
        avg(reward) AS reward,
        avg(abs(delta)) AS delta_abs,
        avg(log_ratio) AS kl,
        avg(log_ratio) AS log_ratio,
        avg(kl_k1) AS kl_k1,
        avg(kl_k3) AS kl_k3,
        avg(entropy) AS entropy,
        avg(engine_gap) AS engine_gap,
        avg(engine_kl) AS engine_kl,
        avg(response_length) AS response_length,
        avg((finish_reason = 'length')::INTEGER) AS truncated,
        avg((reward IS NULL)::INTEGER) AS unjudged,
        avg(overlong_penalty) AS overlong_penalty,
        count(DISTINCT prompt_id) FILTER (replaced) AS groups_replaced,
        (SELECT avg(staleness) FROM draws WHERE round = $round) AS staleness,
        (SELECT avg(effective_sample_size) FROM updates WHERE round = $round) AS effective_sample_size,
        (SELECT avg(delta_abs) FROM updates WHERE round = $round) AS drawn_delta_abs,
        (SELECT avg(loss) FROM updates WHERE round = $round) AS loss,
        (SELECT avg(grad_norm) FROM updates WHERE round = $round) AS grad_norm,
        (SELECT avg(grad_clipped::INTEGER) FROM updates WHERE round = $round) AS grad_clipped,
        (SELECT sum(tokens)::BIGINT FROM updates WHERE round = $round) AS learner_tokens
    FROM fresh
"""

# Ordered, so that sums are reproducible to the bit.
_WRITERS = """
    SELECT writer_log_ratio::DOUBLE AS writer_log_ratio
    FROM residuals
    WHERE round = $round AND "update" IS NOT NULL AND writer_log_ratio IS NOT NULL
    ORDER BY "update", trajectory_id
"""


def _inputs(context: RunContext, round: int, manifests: Sequence[Manifest]) -> list[Any]:
    return [manifest.digest for manifest in manifests]


@stage(inputs=_inputs)
def recording(context: RunContext, round: int, manifests: Sequence[Manifest]) -> Outcome:
    """Compute the metrics of a round. `manifests` are those of its stages."""
    row = context.store.query(_METRICS, round=round).to_pylist()[0]
    learner_tokens = row.pop("learner_tokens")
    if not context.config.objective.has_residual:  # what updates note as |Δ| is then no residual
        row["drawn_delta_abs"] = None
    seconds = {manifest.stage: manifest.seconds for manifest in manifests}
    info = {manifest.stage: manifest.info for manifest in manifests}
    row |= {f"{name}_seconds": seconds.get(name, 0.0) for name in TIMED}
    other = context.other_seconds()
    row |= {
        "round": round,
        **_off_policy(context, round),
        "engine_lag": (info.get("consistency", {}).get("engine_lag") or {}).get("slope"),
        "held_out_accuracy": info.get("evaluation", {}).get("accuracy"),
        "residual_left": info["sampling"]["residual_left"],
        "stored_delta_abs": info.get("evaluation", {}).get("delta_abs"),
        "other_seconds": other,
        "rollout_tokens_per_second": _rate(
            info.get("rollouts", {}).get("generated_tokens"), info.get("rollouts", {}).get("generation_seconds")
        ),
        "learner_tokens_per_second": learner_tokens / seconds["learning"],
        "ended_at": datetime.datetime.fromtimestamp(time.time(), datetime.UTC),
    }
    context.attempt.touch()
    table = pa.Table.from_pylist([row], schema=SCHEMAS["rounds"])
    return Outcome([publish(context, round, "rounds", table)], {"other_seconds": other, "stages": list(info)})


def _off_policy(context: RunContext, round: int) -> dict[str, float | None]:
    """How far off policy the round's draws were: quantiles of the writer log-ratio, and their effective share."""
    log_ratios = context.store.query(_WRITERS, round=round).column("writer_log_ratio").to_numpy()
    quantiles = np.quantile(log_ratios, QUANTILES).tolist() if len(log_ratios) else [None] * len(QUANTILES)
    named = {f"off_policy_q{100 * share:02.0f}": value for share, value in zip(QUANTILES, quantiles, strict=True)}
    return {**named, "off_policy_ess": effective_share(log_ratios) if len(log_ratios) else None}


def _rate(tokens: int | None, seconds: float | None) -> float | None:
    """Tokens per second; None if no time was recorded."""
    return tokens / seconds if tokens is not None and seconds else None
