"""Stopping a run whose engine and trainer do not mean the same policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from reval_core.atomic_files import set_aside
from reval_core.engines.mismatch import Lag, Sample, likely_cause
from reval_core.engines.weights import policy_tensors
from reval_core.errors import RunStopped
from reval_core.learning.checkpoints import checkpoint_rounds
from reval_core.pipeline.reconstruction import Policy, recorded_policy
from reval_core.pipeline.run_context import RunContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EARLIER_POLICIES = 4


def stop_if_apart(
    context: RunContext,
    round: int,
    scores: pa.Table,
    policy: Policy,
    sample: Callable[[torch.nn.Module], Sample],
    lag: Lag | None,
) -> None:
    """Raise RunStopped, naming the likely cause, if the engine's log-probs of a round are not the trainer's.

    They are not where they are further apart than the limit, or nearer those of the policy before. `sample` gives
    some of the round's trajectories, and scores them by the model that it is given. The round's responses are
    quarantined: they were not written by the policy, and a resumed run generates others.
    """
    gap, kl = (pc.mean(scores.column(name)).as_py() for name in ("engine_gap", "engine_kl"))
    limit, name = context.config.engine.gap_limit, context.generating().name
    if gap is not None and gap > limit:
        found = (
            f"engine {name} and trainer differ by {gap:.3g} nats a token (KL about {kl:.3g}), more than "
            f"engine.gap_limit ({limit:g}). Likely cause: {_cause(context, policy, sample)}"
        )
    elif lag is not None and lag.stale:
        found = (
            f"stale weights: engine {name} generates with the policy of round {policy.round - 1}. Its log-probs "
            f"lack {lag.slope:.0%} (standard error {lag.error:.1%}, over {lag.tokens:,} tokens) of what learning "
            f"changed in round {policy.round}, though they differ by only {gap:.3g} nats per token"
        )
    else:
        return
    aside = _quarantine(context, round)
    raise RunStopped(
        f"round {round}: {found}. Its responses are set aside in {aside.relative_to(context.directory.path)}; "
        f"reval resume {context.directory.path} generates others"
    )


def _cause(context: RunContext, policy: Policy, sample: Callable[[torch.nn.Module], Sample]) -> str:
    model = context.learner_at(policy).model
    dtype = context.generating().dtype
    rounded = None if dtype is None else partial(_by_rounded, model, context.config.seed, dtype, sample)
    try:
        earlier = chain(_before(context, policy, sample), _earlier(context, policy, sample))
        return likely_cause(sample(model), earlier, context.config.engine.gap_limit, rounded)
    except Exception as error:  # such as a lack of memory: what was found counts, whatever its cause
        return f"unknown, since looking for it failed ({type(error).__name__}: {error})"


def _quarantine(context: RunContext, round: int) -> Path:
    """Move a round's responses and verdicts out of the way; gives where the responses are now."""
    responses = context.directory.manifest_path("rollouts", round).parent
    # The verdicts first: without responses they could not be told from those of others.
    for path in (context.directory.manifest_path("verification", round), responses):
        set_aside(path)
    return responses.with_name(f"{responses.name}.damaged")


def _by_rounded(
    model: PreTrainedModel, seed: int, dtype: torch.dtype, sample: Callable[[torch.nn.Module], Sample]
) -> Tensor:
    """What the policy says of the sample with its weights as the engine was given them."""
    handed_over = type(model)(model.config).to(model.device).eval()
    weights = {name: tensor.float() for name, tensor in policy_tensors(model, seed, dtype)}
    handed_over.load_state_dict(weights, strict=False)  # tied weights stand there once
    found = sample(handed_over)
    return found.score(found.temperature)


def _before(
    context: RunContext, policy: Policy, sample: Callable[[torch.nn.Module], Sample]
) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """The policy of the round before, if the learner keeps it."""
    learner = context.learner_at(policy)
    if learner.before is None:
        return

    def by_before() -> Tensor:
        with learner.as_before() as model:
            found = sample(model)
            return found.score(found.temperature)

    yield policy.round - 1, by_before


def _earlier(
    context: RunContext, policy: Policy, sample: Callable[[torch.nn.Module], Sample]
) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """The newest policies before this one that have checkpoints."""
    rounds = sorted(checkpoint_rounds(context.directory.checkpoints), reverse=True)
    for round in [one for one in rounds if one < policy.round][:_EARLIER_POLICIES]:
        earlier = recorded_policy(context.directory, round)
        if earlier is not None:

            def by_earlier(earlier: Policy = earlier) -> Tensor:
                with context.reference_model(earlier) as model:
                    found = sample(model)
                    return found.score(found.temperature)

            yield round, by_earlier
