"""Stopping a run whose engine and trainer do not mean the same policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from reval_core.canary import Sample, likely_cause
from reval_core.checkpoints import checkpoint_rounds
from reval_core.engines.weights import policy_tensors
from reval_core.errors import RunStopped
from reval_core.files import set_aside
from reval_core.replay import Policy, recorded_policy
from reval_core.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EARLIER_POLICIES = 4


def stop_if_apart(
    session: Session, round: int, scores: pa.Table, policy: Policy, sample: Callable[[torch.nn.Module], Sample]
) -> None:
    """Raise RunStopped, naming the likely cause, if the engine's log-probs of a round are not the trainer's.

    `sample` gives some of the round's trajectories, and scores them by the model that it is given. The round's
    responses are set aside: they were not written by the policy, and going on generates others.
    """
    gap, kl = (pc.mean(scores.column(name)).as_py() for name in ("engine_gap", "engine_kl"))
    limit = session.config.engine.gap_limit
    if gap is None or gap <= limit:
        return
    model = session.learner_at(policy).model
    dtype = session.generating().dtype
    rounded = None if dtype is None else partial(_by_rounded, model, session.config.seed, dtype, sample)
    try:
        cause = likely_cause(sample(model), _earlier(session, policy, sample), limit, rounded)
    except Exception as error:  # such as a lack of memory: what was found counts, whatever its cause
        cause = f"unknown, since looking for it failed ({type(error).__name__}: {error})"
    folder = session.folder
    aside = folder.manifest_path("rollouts", round).parent
    # The verdicts first: without responses they could not be told from those of others.
    for path in (folder.manifest_path("verification", round), aside):
        set_aside(path)
    raise RunStopped(
        f"round {round}: engine {session.generating().name} and trainer differ by {gap:.3g} nats a token "
        f"(KL about {kl:.3g}), more than engine.gap_limit ({limit:g}). Likely cause: {cause}. Its responses "
        f"are set aside in {aside.relative_to(folder.path)}.damaged; reval resume {folder.path} generates others"
    )


def _by_rounded(
    model: PreTrainedModel, seed: int, dtype: torch.dtype, sample: Callable[[torch.nn.Module], Sample]
) -> Tensor:
    """What the policy says of the sample with its weights as the engine was given them."""
    handed_over = type(model)(model.config).to(model.device).eval()
    weights = {name: tensor.float() for name, tensor in policy_tensors(model, seed, dtype)}
    handed_over.load_state_dict(weights, strict=False)  # tied weights stand there once
    found = sample(handed_over)
    return found.score(found.temperature)


def _earlier(
    session: Session, policy: Policy, sample: Callable[[torch.nn.Module], Sample]
) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """The newest policies before this one that have checkpoints."""
    rounds = sorted(checkpoint_rounds(session.folder.checkpoints), reverse=True)
    for round in [one for one in rounds if one < policy.round][:_EARLIER_POLICIES]:
        earlier = recorded_policy(session.folder, round)
        if earlier is not None:

            def by_earlier(earlier: Policy = earlier) -> Tensor:
                with session.reference_model(earlier) as model:
                    found = sample(model)
                    return found.score(found.temperature)

            yield round, by_earlier
