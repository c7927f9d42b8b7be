"""The scoring noise of a run: measured at its start, after each reference reset and on another device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reval_core.learning.shared_scoring import Texts
from reval_core.model.noise import LEAST, Noise, measure, spread_sample
from reval_core.model.scoring import Scores
from reval_core.model.token_batch import micro_batch_limit
from reval_core.pipeline.run_context import Policy, RunContext
from reval_core.replay_buffer.trajectories import list_rows


def noise_is_known(context: RunContext, round: int) -> bool:
    """Whether the noise that applies to a round was measured in an earlier round, on this device."""
    earlier = _recorded(context, [("reference_reset", round - 1), ("sampling", round - 1)])
    return earlier is not None and bool(earlier["device"] == device_name())


def measured_noise(
    context: RunContext, rows: pa.Table, scores: pa.Table, policy: Policy, known: bool = False
) -> dict[str, Any]:
    """Measure the noise of a stage's scores.

    Args:
        context: The run context.
        rows: The scored trajectories, with their tokens.
        scores: Their rows of `scores`.
        policy: The policy that they were scored under.
        known: Whether the noise was measured before.

    Returns:
        `{"noise": …}` for the manifest of the stage. Empty if the objective has no residual, `learner.noise` sets
        the noise, or it is `known`.
    """
    config = context.config
    learner = config.learner
    if not config.objective.has_residual or learner.noise is not None or known or not len(rows):
        return {}
    lengths = np.add(*(np.array([len(row) for row in texts]) for texts in texts_of(rows)[:2]))
    chosen = spread_sample(lengths.tolist())
    texts = texts_of(rows.take(pa.array(chosen)))
    log_policy, value = (scores.column(name).to_numpy()[chosen] for name in ("log_policy", "value_policy"))
    by = context.by_policy(policy)

    def scores_of(groups: Sequence[list[int]]) -> list[Scores]:
        return [one.scores for one in context.scores(by, texts, groups=groups, as_in_updates=True)]

    limit = micro_batch_limit(context.device, learner.micro_batch_tokens)
    found = measure(scores_of, texts, (log_policy, value), limit, learner.packed).at_least(LEAST[learner.precision])
    return {"noise": {"logprob": found.logprob, "value": found.value, "device": device_name()}}


def round_noise(context: RunContext, round: int) -> dict[str, Any] | None:
    """The last noise measured before the draws of a round; None if there was nothing to measure."""
    return _recorded(
        context,
        [("consistency", round), ("reference_reset", round - 1), ("sampling", round - 1), ("consistency", 0)],
    )


def as_noise(recorded: dict[str, Any] | None) -> Noise | None:
    """The noise recorded in a manifest, as a `Noise` for the learner."""
    return None if recorded is None else Noise(recorded["logprob"], recorded["value"])


def device_name() -> str:
    """The name of the device, on which kernels and hence rounding depend."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def texts_of(rows: pa.Table) -> Texts:
    """The tokens of trajectories."""
    prompts, responses, written = (
        list_rows(rows.column(name)) for name in ("prompt_tokens", "response_tokens", "loss_mask")
    )
    return prompts, responses, written


def _recorded(context: RunContext, stages: list[tuple[str, int]]) -> dict[str, Any] | None:
    """The noise in the first of these manifests that has one."""
    manifests = (context.directory.manifest(*stage) for stage in stages)
    return next((one.info["noise"] for one in manifests if one is not None and one.info.get("noise")), None)
