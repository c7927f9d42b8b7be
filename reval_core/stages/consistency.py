"""Consistency: score each trajectory under the policy and the reference, and compute the residuals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from reval_core.config import Config, Objective
from reval_core.engines.mismatch import Lag, Sample, engine_lag, token_gap, token_kl
from reval_core.learning.replica import BEFORE, POLICY
from reval_core.model.noise import spread_sample
from reval_core.model.scoring import Scores
from reval_core.model.token_batch import Rows, TokenBatch, collate, pad_rows
from reval_core.objectives import residual, step_residuals
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.replay_buffer.trajectories import list_rows, logprob_rows
from reval_core.stages.mismatch import Logprobs, stop_if_apart
from reval_core.stages.noise import measured_noise, noise_is_known, texts_of
from reval_core.stages.stage import Outcome, publish, settings, stage
from reval_core.storage.tables import Manifest

TOKEN_COLUMNS = (
    "trajectory_id",
    "prompt_tokens",
    "response_tokens",
    "loss_mask",
    "engine_logprobs",
    "temperature",
    "policy",
    "policy_rounds",
)


_MEASURED = ("engine_gap", "engine_kl", "kl_k1", "kl_k3")
"""Columns with means over the tokens that the policy wrote; null where it wrote none."""

_SAMPLED = 16
"""The number of trajectories that are examined when the log-probs of engine and trainer do not match."""


def _inputs(
    context: RunContext, round: int, rollouts: Manifest, verdicts: Manifest, policy: Policy, reference: Policy
) -> list[Any]:
    config = context.config
    return [
        rollouts.digest,
        verdicts.digest,
        policy.identity,
        reference.identity,
        settings(context.objective),
        scoring_settings(config),
    ]


def scoring_settings(config: Config) -> list[Any]:
    """What a trajectory's scores depend on besides its tokens and the policies."""
    learner = config.learner
    return [learner.micro_batch_tokens, learner.packed, learner.precision, config.scoring_temperature]


@stage(inputs=_inputs)
def consistency(
    context: RunContext, round: int, rollouts: Manifest, verdicts: Manifest, policy: Policy, reference: Policy
) -> Outcome:
    """Score the round's fresh trajectories under the policy that wrote them and under the reference.

    Returns:
        The rows of `scores`. `info["beta"]` is the β of the residuals, None if the objective has none;
        `info["noise"]`, in the first round and on another device, is the measured uncertainty of the scores;
        `info["engine_lag"]` is the number of rounds by which the engine's weights lag behind, None if unknown.
    """
    shards = context.directory.rows(rollouts.stage, round, "trajectories", TOKEN_COLUMNS)
    reward = context.directory.rows(verdicts.stage, round, "verdicts", ("reward",)).column("reward")
    table = score_trajectories(context, round, shards, reward, policy, reference)
    lag = None
    # A round that passed this check before is not checked again when it is scored again.
    if context.engine is not None and context.directory.manifest("consistency", round) is None:
        lag = _measured_lag(context, shards, policy) if context.engine_may_lag else None
        gaps = table.column("engine_gap").to_numpy()
        worst = np.argsort(-gaps, kind="stable")[:_SAMPLED].tolist()  # NaN comes last
        stop_if_apart(context, round, table, policy, partial(_sample, context, shards, policy, worst), lag)
    noise = measured_noise(context, shards, table, policy, known=noise_is_known(context, round))
    info = {"beta": context.objective.beta, "engine_lag": lag and asdict(lag), **noise}
    return Outcome([publish(context, round, "scores", table)], info)


def score_trajectories(
    context: RunContext, round: int, rows: pa.Table, reward: pa.ChunkedArray, policy: Policy, reference: Policy
) -> pa.Table:
    """Score trajectories under a policy and a reference.

    If both are the same policy, the model is run once and the two scores are identical to the bit.

    Args:
        context: The run context.
        round: The round of the scoring.
        rows: The trajectories, with `TOKEN_COLUMNS`.
        reward: The reward of each; null where it is unknown.
        policy: The policy π_θ.
        reference: The reference π_ref.

    Returns:
        Rows of the table `scores`, one per trajectory, in the order of `rows`.
    """
    config = context.config
    texts = texts_of(rows)
    by_reference = None if reference == policy else context.scores(context.by_reference(reference), texts)
    rewards = reward.to_numpy(zero_copy_only=False).astype(np.float32)
    # The engine's log-probs are those of the policy that wrote a response: the gap is defined only for this policy.
    written = pc.equal(rows.column("policy"), policy.identity).to_numpy()
    temperature = _sampled_at(rows, written, otherwise=config.scoring_temperature)
    engine, own = _own_logprobs(rows, policy)
    by = context.by_policy(policy)
    by_policy = context.scores(by, texts, entropy=True, tick=context.tick)
    alike = math.isclose(temperature, config.scoring_temperature, rel_tol=1e-6)  # stored in float32
    as_sampled = by_policy if alike else context.scores(by, texts, temperature=temperature)
    parts: list[dict[str, Any]] = []
    for (chosen, batch, scores), sampled, of_reference in zip(
        by_policy, as_sampled, by_reference or by_policy, strict=True
    ):
        scores_ref, logprobs = of_reference.scores, sampled.scores.logprobs
        part = _columns(batch, scores, scores_ref, rewards[chosen], context.objective)
        by_engine, mask = _padded(engine, own, chosen, batch)
        compared = {
            "engine_gap": _mean(token_gap(logprobs, by_engine, mask), mask),
            "engine_kl": _mean(token_kl(logprobs, by_engine, mask), mask),
            **_divergence(scores, scores_ref, mask & alike),
        }
        parts.append({"row": chosen, **compared, **part})
    columns = _in_order(parts)
    count = len(rows)
    unknown = np.isnan(columns["delta"])
    return pa.table(
        {
            "trajectory_id": rows.column("trajectory_id"),
            "round": [round] * count,
            "reference": [reference.identity] * count,
            "policy": [policy.identity] * count,
            **{
                name: pa.array(columns[name])
                for name in ("log_ref", "value_ref", "log_policy", "value_policy", "value_term", "log_ratio")
            },
            "scaled_reward": pa.array(columns["scaled_reward"], mask=unknown),
            "delta": pa.array(columns["delta"], mask=unknown),
            "entropy": pa.array(columns["entropy"]),
            **{name: pa.array(columns[name], mask=np.isnan(columns[name])) for name in _MEASURED},
            "step_deltas": [
                None if nothing else steps for nothing, steps in zip(unknown, columns["step_deltas"], strict=True)
            ],
            "policy_logprobs": columns["policy_logprobs"],
        }
    )


def _sample(context: RunContext, rows: pa.Table, policy: Policy, chosen: list[int], logprobs: Logprobs) -> Sample:
    """Some trajectories of a round, for diagnosing a mismatch between engine and trainer."""
    engine, own = _own_logprobs(rows, policy)
    texts = texts_of(rows.take(pa.array(chosen)))
    by_engine, compared = _padded(engine, own, chosen, collate(*texts))
    return Sample(by_engine, compared, partial(logprobs, texts), context.config.generation.temperature)


def _measured_lag(context: RunContext, rows: pa.Table, policy: Policy) -> Lag | None:
    """The lag of the engine's weights, estimated from a sample of the rows that it generated with `policy`."""
    written = [row for row, own in enumerate(_own_logprobs(rows, policy)[1]) if own.any()]
    learner = context.learner_and_before(policy) if written else None
    if learner is None:
        return None
    responses = list_rows(rows.column("response_tokens"))
    sample = rows.take(
        pa.array([written[place] for place in spread_sample([len(responses[row]) for row in written])])
    )
    engine, own = _own_logprobs(sample, policy)
    texts, temperature = texts_of(sample), context.config.generation.temperature
    now, before = (context.scores(by, texts, temperature=temperature) for by in (POLICY, BEFORE))
    tokens = []
    for (chosen, batch, scores), earlier in zip(now, before, strict=True):
        by_engine, mask = _padded(engine, own, chosen, batch)
        by_trainer = (scores.logprobs, earlier.scores.logprobs)
        tokens.append(torch.stack([one[mask] for one in (by_engine, *by_trainer)]))
    return engine_lag(*torch.cat(tokens, dim=1).double().numpy())


def _sampled_at(rows: pa.Table, written: np.ndarray, otherwise: float) -> float:
    """The sampling temperature of the rows that the policy wrote (`written`); `otherwise` if there are none."""
    first = int(written.argmax())
    return float(rows.column("temperature")[first].as_py()) if written[first] else otherwise


def _columns(
    batch: TokenBatch, scores: Scores, scores_ref: Scores, reward: np.ndarray, objective: Objective
) -> dict[str, Any]:
    found = residual(
        objective.kind,
        scores.log_policy,
        scores_ref.log_policy,
        scores.value,
        scores_ref.value,
        torch.from_numpy(reward).to(scores.value.device),
        objective.beta,
    )
    steps = step_residuals(
        scores.values, scores_ref.values, scores.logprobs, scores_ref.logprobs, batch.mask, found.scaled_reward
    )
    tokens = batch.mask.sum(dim=1)
    assert scores.entropies is not None
    return {
        "log_ref": scores_ref.log_policy.cpu().numpy(),
        "value_ref": scores_ref.value.cpu().numpy(),
        "log_policy": scores.log_policy.cpu().numpy(),
        "value_policy": scores.value.cpu().numpy(),
        "value_term": found.value_term.cpu().numpy(),
        "log_ratio": found.log_ratio.cpu().numpy(),
        "scaled_reward": found.scaled_reward.cpu().numpy(),
        "delta": found.delta.cpu().numpy(),
        "entropy": (scores.entropies.sum(dim=1) / tokens).cpu().numpy(),
        "step_deltas": _rows(steps, batch.mask),
        "policy_logprobs": _rows(scores.logprobs, batch.mask),
    }


def _own_logprobs(rows: pa.Table, policy: Policy) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The engine's log-probs of each row's tokens, and which of the tokens `policy` itself wrote (bool)."""
    responses = list_rows(rows.column("response_tokens"))
    logprobs, writers = (
        logprob_rows(rows.column(name), responses) for name in ("engine_logprobs", "policy_rounds")
    )
    same = (rows.column("policy").to_numpy() == policy.identity).tolist()
    return logprobs, [written & (writer == policy.round) for written, writer in zip(same, writers, strict=True)]


def _padded(engine: Rows, own: Rows, chosen: Sequence[int], batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """The engine's log-probs of the chosen rows [B, H], and a mask of the tokens to compare."""
    width, device = batch.mask.shape[1], batch.mask.device
    by_engine = pad_rows([engine[row] for row in chosen], width, np.float32)[0]
    mask = pad_rows([own[row] for row in chosen], width, np.bool_)[0]
    return torch.from_numpy(by_engine).to(device), torch.from_numpy(mask).to(device) & batch.written


def _divergence(scores: Scores, scores_ref: Scores, sampled: Tensor) -> dict[str, np.ndarray]:
    """Two estimates of KL(policy ‖ reference) per token, from tokens sampled [B, H] as they are scored."""
    log_ratio = (scores.logprobs - scores_ref.logprobs).masked_fill(~sampled, 0.0)
    return {
        "kl_k1": _mean(log_ratio, sampled),
        "kl_k3": _mean(token_kl(scores_ref.logprobs, scores.logprobs, sampled), sampled),
    }


def _mean(values: Tensor, mask: Tensor) -> np.ndarray:
    """The mean [B] of values [B, H] that are 0 outside the mask; NaN where the mask is empty."""
    return (values.sum(dim=1) / mask.sum(dim=1)).cpu().numpy()


def _rows(padded: Tensor, mask: Tensor) -> list[np.ndarray]:
    lengths = mask.sum(dim=1).tolist()
    return [row[:length] for row, length in zip(padded.cpu().numpy(), lengths, strict=True)]


def _in_order(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The columns of all micro-batches, put back into the order of the rows."""
    order = np.argsort(np.concatenate([part["row"] for part in parts]))
    joined: dict[str, Any] = {}
    for name in parts[0]:
        column = [value for part in parts for value in part[name]]
        ordered = [column[place] for place in order]
        joined[name] = ordered if isinstance(column[0], np.ndarray) else np.array(ordered, dtype=np.float32)
    return joined
