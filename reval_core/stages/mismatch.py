"""The trainer–engine log-prob mismatch check: stops a run whose engine and trainer use different policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from reval_core.atomic_files import quarantine
from reval_core.engines.mismatch import Lag, Sample, likely_cause
from reval_core.engines.weights import policy_tensors
from reval_core.errors import RunStopped
from reval_core.learning.checkpoints import checkpoint_rounds
from reval_core.learning.distributed import whole
from reval_core.learning.replica import BEFORE
from reval_core.learning.shared_scoring import Texts
from reval_core.model.scoring import score
from reval_core.model.token_batch import collate
from reval_core.pipeline.reconstruction import Policy, recorded_policy
from reval_core.pipeline.run_context import RunContext

_EARLIER_POLICIES = 4

Logprobs = Callable[[Texts, float], Tensor]
"""The log-probs [B, H] of texts at a temperature, in one padded batch, by some model."""


def stop_if_apart(
    context: RunContext,
    round: int,
    scores: pa.Table,
    policy: Policy,
    sample: Callable[[Logprobs], Sample],
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
        sample: Some of the round's trajectories, scored by the function that it is called with.
        lag: The measured lag of the engine's weights; None if unknown.

    Raises:
        RunStopped: If the log-probs do not match; the message names the likely cause.
    """
    gap, kl = (pc.mean(scores.column(name)).as_py() for name in ("engine_gap", "engine_kl"))
    limit, name = context.config.engine.mismatch_limit, context.generating().name
    if gap is not None and gap > limit:
        problem = (
            f"engine {name} and trainer differ by {gap:.3g} nats per token (KL about {kl:.3g}), more than "
            f"engine.mismatch_limit ({limit:g}). Likely cause: {_cause(context, policy, sample)}"
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


def _cause(context: RunContext, policy: Policy, sample: Callable[[Logprobs], Sample]) -> str:
    dtype = context.generating().dtype
    try:
        now = sample(_by(context, context.by_policy(policy)))
        rounded = None if dtype is None else partial(_by_rounded, context, policy, dtype, sample)
        earlier = chain(_before(context, policy, sample), _earlier(context, policy, sample))
        return likely_cause(now, earlier, context.config.engine.mismatch_limit, rounded)
    except Exception as error:  # such as out of memory: the mismatch itself must be reported anyway
        return f"unknown, since the diagnosis failed ({type(error).__name__}: {error})"


def _by(context: RunContext, by: str) -> Logprobs:
    """The log-probs by a model of the run."""

    def logprobs(texts: Texts, temperature: float) -> Tensor:
        every = [range(len(texts[0]))]
        ((_, _, scores),) = context.scores(by, texts, temperature=temperature, groups=every, packed=False)
        return scores.logprobs

    return logprobs


def _quarantine(context: RunContext, round: int) -> Path:
    """Quarantine a round's responses and verdicts. Returns the new path of the responses."""
    responses = context.directory.manifest_path("rollouts", round).parent
    # The verdicts first: once the responses are moved, they could not be told from the verdicts on new responses.
    for path in (context.directory.manifest_path("verification", round), responses):
        quarantine(path)
    return responses.with_name(f"{responses.name}.damaged")


def _by_rounded(
    context: RunContext, policy: Policy, dtype: torch.dtype, sample: Callable[[Logprobs], Sample]
) -> Tensor:
    """The policy's log-probs of the sample, with the weights rounded as they were published to the engine."""
    with whole(context.learner_at(policy)) as model:
        published = type(model)(model.config).to(context.device).eval()
        weights = {name: tensor.float() for name, tensor in policy_tensors(model, context.config.seed, dtype)}
    published.load_state_dict(weights, strict=False)  # tied weights are contained once

    @torch.no_grad()
    def logprobs(texts: Texts, temperature: float) -> Tensor:
        return score(published, collate(*texts).to(context.device), temperature).logprobs.cpu()

    return _at_sampling(sample(logprobs))


def _at_sampling(scored: Sample) -> Tensor:
    return scored.score(scored.temperature)


def _before(
    context: RunContext, policy: Policy, sample: Callable[[Logprobs], Sample]
) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """The policy of the previous round, if the learner keeps it."""
    if context.learner_at(policy).before is not None:
        yield policy.round - 1, lambda: _at_sampling(sample(_by(context, BEFORE)))


def _earlier(
    context: RunContext, policy: Policy, sample: Callable[[Logprobs], Sample]
) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """The newest policies before this one that have checkpoints."""
    rounds = sorted(checkpoint_rounds(context.directory.checkpoints), reverse=True)
    for round in [one for one in rounds if one < policy.round][:_EARLIER_POLICIES]:
        earlier = recorded_policy(context.directory, round)
        if earlier is not None:

            def by_earlier(earlier: Policy = earlier) -> Tensor:
                return _at_sampling(sample(_by(context, context.by_reference(earlier))))

            yield round, by_earlier
