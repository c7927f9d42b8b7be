"""The trainer–engine log-prob mismatch check: stops a run whose engine and trainer use different policies."""

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

from reval_core.atomic_files import quarantine
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
    """Stop the run if the engine's log-probs of a round do not match the trainer's.

    They do not match if they differ by more than the limit, or are closer to those of the previous policy. The
    round's responses are then quarantined: they were not written by the policy, and a resumed run generates others.

    Args:
        context: The run context.
        round: The round.
        scores: The rows of `scores` of the round.
        policy: The policy that the engine should have used.
        sample: Scores some of the round's trajectories with the model that it is called with.
        lag: The measured lag of the engine's weights; None if unknown.

    Raises:
        RunStopped: If the log-probs do not match; the message names the likely cause.
    """
    gap, kl = (pc.mean(scores.column(name)).as_py() for name in ("engine_gap", "engine_kl"))
    limit, name = context.config.engine.gap_limit, context.generating().name
    if gap is not None and gap > limit:
        problem = (
            f"engine {name} and trainer differ by {gap:.3g} nats per token (KL about {kl:.3g}), more than "
            f"engine.gap_limit ({limit:g}). Likely cause: {_cause(context, policy, sample)}"
        )
    elif lag is not None and lag.stale:
        problem = (
            f"stale weights: engine {name} generates with the policy of round {policy.round - 1}. Its log-probs "
            f"lack {lag.slope:.0%} (standard error {lag.error:.1%}, over {lag.tokens:,} tokens) of the change that "
            f"round {policy.round} learned, although they differ by only {gap:.3g} nats per token"
        )
    else:
        return
    quarantined = _quarantine(context, round)
    path = context.directory.path
    raise RunStopped(
        f"round {round}: {problem}. Its responses are quarantined in {quarantined.relative_to(path)}; "
        f"reval resume {path} generates new ones"
    )


def _cause(context: RunContext, policy: Policy, sample: Callable[[torch.nn.Module], Sample]) -> str:
    model = context.learner_at(policy).model
    dtype = context.generating().dtype
    rounded = None if dtype is None else partial(_by_rounded, model, context.config.seed, dtype, sample)
    try:
        earlier = chain(_before(context, policy, sample), _earlier(context, policy, sample))
        return likely_cause(sample(model), earlier, context.config.engine.gap_limit, rounded)
    except Exception as error:  # such as out of memory: the mismatch itself must be reported anyway
        return f"unknown, since the diagnosis failed ({type(error).__name__}: {error})"


def _quarantine(context: RunContext, round: int) -> Path:
    """Quarantine a round's responses and verdicts. Returns the new path of the responses."""
    responses = context.directory.manifest_path("rollouts", round).parent
    # The verdicts first: once the responses are moved, they could not be told from the verdicts on new responses.
    for path in (context.directory.manifest_path("verification", round), responses):
        quarantine(path)
    return responses.with_name(f"{responses.name}.damaged")


def _by_rounded(
    model: PreTrainedModel, seed: int, dtype: torch.dtype, sample: Callable[[torch.nn.Module], Sample]
) -> Tensor:
    """The policy's log-probs of the sample, with the weights rounded as they were published to the engine."""
    published = type(model)(model.config).to(model.device).eval()
    weights = {name: tensor.float() for name, tensor in policy_tensors(model, seed, dtype)}
    published.load_state_dict(weights, strict=False)  # tied weights are contained once
    scored = sample(published)
    return scored.score(scored.temperature)


def _before(
    context: RunContext, policy: Policy, sample: Callable[[torch.nn.Module], Sample]
) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """The policy of the previous round, if the learner keeps it."""
    learner = context.learner_at(policy)
    if learner.before is None:
        return

    def by_before() -> Tensor:
        with learner.as_before() as model:
            scored = sample(model)
            return scored.score(scored.temperature)

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
                    scored = sample(model)
                    return scored.score(scored.temperature)

            yield round, by_earlier
