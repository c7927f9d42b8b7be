"""The reference as a running average of policies: updated at resets, identified like a policy, stored separately.

θ_ref ← a · θ_ref + (1 − a) · θ, weight by weight in float32. In bfloat16, scores are computed with the average's
bfloat16 copy, which has the same rounding thresholds as all policies of the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reval_core.atomic_files import check_directory, digest, publish_directory, quarantine, remove_directory
from reval_core.config import Config
from reval_core.errors import CorruptData
from reval_core.learning.checkpoints import checkpoint_state
from reval_core.model.loading import load_model, policy_digest, save_model
from reval_core.pipeline.reconstruction import Policy, recorded_policy
from reval_core.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("reval")

_KEPT = 2
"""The number of averages that are kept: one for scoring, and the one before it for its reconstruction."""


def next_reference(reference: Policy, policy: Policy, ema: float | None) -> Policy:
    """The reference after a reset: `policy` itself or, with `ema`, an average of the two."""
    if ema is None:
        return policy
    return Policy(policy.round, digest("average", ema, reference.identity, policy.identity), averaged=True)


def make_average(
    directory: RunDirectory,
    config: Config,
    reference: Policy,
    weights_of: Callable[[Policy], AbstractContextManager[PreTrainedModel]],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Ensure that the weights of an averaged reference are saved. A corrupt average is quarantined and recomputed.

    The computation starts from the newest average before it, or from the initial policy.

    Args:
        directory: The run directory.
        config: The config of the run.
        reference: The averaged reference.
        weights_of: Gives a policy with its float32 weights.
        tokenizer: Saved with the weights.

    Raises:
        CorruptData: If the run has not recorded the policies that the average consists of.
    """
    if _is_saved(directory, reference):
        return
    ema, chain = config.reference.ema, _references(directory, config, reference.round)
    if ema is None or chain[-1] != reference:
        raise CorruptData(
            f"{directory.path}: the reference of round {reference.round} is not an average of its recorded policies"
        )
    first = max(place for place, one in enumerate(chain) if not one.averaged or _is_saved(directory, one))
    begin = chain[first]
    model = load_model(directory.average(begin.round) if begin.averaged else directory.checkpoint(0), config.model)
    for one in chain[first + 1 :]:
        policy = recorded_policy(directory, one.round)
        assert policy is not None, "a reset follows the learning of its policy"
        with weights_of(policy) as newer:
            _move(model, newer, ema)
    state = {"policy": reference.identity, "content": policy_digest(model)}

    def write(partial: Path) -> None:
        save_model(model, tokenizer, partial)
        (partial / "learner.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    publish_directory(directory.average(reference.round), write)


def drop_averages(directory: RunDirectory) -> None:
    """Delete all averages except the newest."""
    for path in directory.averages()[:-_KEPT]:
        remove_directory(path)


def _references(directory: RunDirectory, config: Config, round: int) -> list[Policy]:
    """The references of a run, from the initial policy to the one after the reset of round `round`."""
    every, initial = config.reference.reset_every, recorded_policy(directory, 0)
    assert every is not None, "an average without reset_every is rejected at load"
    assert initial is not None, "a reset follows the warm start"
    chain = [initial]
    for number in range(every, round + 1, every):
        policy = recorded_policy(directory, number)
        assert policy is not None, "a reset follows the learning of its policy"
        chain.append(next_reference(chain[-1], policy, config.reference.ema))
    return chain


def _is_saved(directory: RunDirectory, reference: Policy) -> bool:
    """Whether the weights of an average are saved and intact. Corrupt weights are quarantined.

    Raises CorruptData if they belong to another reference.
    """
    path = directory.average(reference.round)
    if not path.exists():
        return False
    try:
        check_directory(path)
    except CorruptData as error:
        log.warning("%s; it is quarantined and recomputed", error)
        quarantine(path)
        return False
    if checkpoint_state(path)["policy"] != reference.identity:
        raise CorruptData(f"{path}: is not the reference that this run recorded")
    return True


@torch.no_grad()
def _move(model: PreTrainedModel, newer: PreTrainedModel, ema: float) -> None:
    """Update the float32 weights of `model` to the average, in place. Equal weights stay identical to the bit."""
    others = dict(newer.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.add_((others[name].to(parameter.device) - parameter) * (1 - ema))
