"""The reference as a running average of policies: moved at resets, named like a policy, kept in files of its own.

θ_ref ← a · θ_ref + (1 − a) · θ, weight by weight in float32. In bfloat16 scores are those of the average's copy,
which has the same thresholds as all policies of the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reval_core.atomic_files import check_directory, digest, publish_directory, remove_directory, set_aside
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
"""The newest averages that stay: one to score with, and one to make it again from."""


def next_reference(reference: Policy, policy: Policy, ema: float | None) -> Policy:
    """What a reset makes of the reference: `policy` itself or, with `ema`, an average of the two."""
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
    """See that the weights of an average stand in `folder.average`; a corrupt one is quarantined and made again.

    It starts from the newest average before it, or from the initial policy. `weights_of` gives the float32 weights
    of a policy. Raises Damaged if the run has not recorded what the average is made of.
    """
    if _stands(directory, reference):
        return
    ema, chain = config.reference.ema, _references(directory, config, reference.round)
    if ema is None or chain[-1] != reference:
        raise CorruptData(
            f"{directory.path}: the reference of round {reference.round} is not made of its recorded policies"
        )
    first = max(place for place, one in enumerate(chain) if not one.averaged or _stands(directory, one))
    begin = chain[first]
    model = load_model(directory.average(begin.round) if begin.averaged else directory.checkpoint(0), config.model)
    for one in chain[first + 1 :]:
        policy = recorded_policy(directory, one.round)
        assert policy is not None, "a reset comes after its policy"
        with weights_of(policy) as newer:
            _move(model, newer, ema)
    state = {"policy": reference.identity, "content": policy_digest(model)}

    def write(partial: Path) -> None:
        save_model(model, tokenizer, partial)
        (partial / "learner.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    publish_directory(directory.average(reference.round), write)


def drop_averages(directory: RunDirectory) -> None:
    """Delete all averages but the newest."""
    for path in directory.averages()[:-_KEPT]:
        remove_directory(path)


def _references(directory: RunDirectory, config: Config, round: int) -> list[Policy]:
    """The references of a run from the initial policy to the one that the reset after `round` makes, by name."""
    every, initial = config.reference.reset_every, recorded_policy(directory, 0)
    assert every is not None, "an average without reset_every is refused at load"
    assert initial is not None, "a reset comes after the warm start"
    chain = [initial]
    for number in range(every, round + 1, every):
        policy = recorded_policy(directory, number)
        assert policy is not None, "a reset comes after its policy"
        chain.append(next_reference(chain[-1], policy, config.reference.ema))
    return chain


def _stands(directory: RunDirectory, reference: Policy) -> bool:
    """Whether the weights of an average are there, whole. What is corrupt is quarantined.

    Raises Damaged if they are of another one.
    """
    path = directory.average(reference.round)
    if not path.exists():
        return False
    try:
        check_directory(path)
    except CorruptData as error:
        log.warning("%s; it is quarantined and made again", error)
        set_aside(path)
        return False
    if checkpoint_state(path)["policy"] != reference.identity:
        raise CorruptData(f"{path}: is not the reference that this run recorded")
    return True


@torch.no_grad()
def _move(model: PreTrainedModel, newer: PreTrainedModel, ema: float) -> None:
    """Make the float32 weights of `model` the average. Equal weights stay as they are, to the bit."""
    others = dict(newer.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.add_((others[name].to(parameter.device) - parameter) * (1 - ema))
