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

from reval_core.checkpoints import checkpoint_state
from reval_core.config import Config
from reval_core.errors import Damaged
from reval_core.files import check_folder, digest, publish_folder, remove_folder, set_aside
from reval_core.models import load_model, policy_digest, save_model
from reval_core.replay import Policy, recorded_policy
from reval_core.run_folder import RunFolder

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
    folder: RunFolder,
    config: Config,
    reference: Policy,
    weights_of: Callable[[Policy], AbstractContextManager[PreTrainedModel]],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """See that the weights of an average stand in `folder.average`; a corrupt one is quarantined and made again.

    It starts from the newest average before it, or from the initial policy. `weights_of` gives the float32 weights
    of a policy. Raises Damaged if the run has not recorded what the average is made of.
    """
    if _stands(folder, reference):
        return
    ema, chain = config.reference.ema, _references(folder, config, reference.round)
    if ema is None or chain[-1] != reference:
        raise Damaged(
            f"{folder.path}: the reference of round {reference.round} is not made of its recorded policies"
        )
    first = max(place for place, one in enumerate(chain) if not one.averaged or _stands(folder, one))
    begin = chain[first]
    model = load_model(folder.average(begin.round) if begin.averaged else folder.checkpoint(0), config.model)
    for one in chain[first + 1 :]:
        policy = recorded_policy(folder, one.round)
        assert policy is not None, "a reset comes after its policy"
        with weights_of(policy) as newer:
            _move(model, newer, ema)
    state = {"policy": reference.identity, "content": policy_digest(model)}

    def write(partial: Path) -> None:
        save_model(model, tokenizer, partial)
        (partial / "learner.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    publish_folder(folder.average(reference.round), write)


def drop_averages(folder: RunFolder) -> None:
    """Delete all averages but the newest."""
    for path in folder.averages()[:-_KEPT]:
        remove_folder(path)


def _references(folder: RunFolder, config: Config, round: int) -> list[Policy]:
    """The references of a run from the initial policy to the one that the reset after `round` makes, by name."""
    every, initial = config.reference.reset_every, recorded_policy(folder, 0)
    assert every is not None, "an average without reset_every is refused at load"
    assert initial is not None, "a reset comes after the warm start"
    chain = [initial]
    for number in range(every, round + 1, every):
        policy = recorded_policy(folder, number)
        assert policy is not None, "a reset comes after its policy"
        chain.append(next_reference(chain[-1], policy, config.reference.ema))
    return chain


def _stands(folder: RunFolder, reference: Policy) -> bool:
    """Whether the weights of an average are there, whole. What is corrupt is quarantined.

    Raises Damaged if they are of another one.
    """
    path = folder.average(reference.round)
    if not path.exists():
        return False
    try:
        check_folder(path)
    except Damaged as error:
        log.warning("%s; it is quarantined and made again", error)
        set_aside(path)
        return False
    if checkpoint_state(path)["policy"] != reference.identity:
        raise Damaged(f"{path}: is not the reference that this run recorded")
    return True


@torch.no_grad()
def _move(model: PreTrainedModel, newer: PreTrainedModel, ema: float) -> None:
    """Make the float32 weights of `model` the average. Equal weights stay as they are, to the bit."""
    others = dict(newer.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.add_((others[name].to(parameter.device) - parameter) * (1 - ema))
