"""Making a policy again: the newest checkpoint before it, then the recorded draws after that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from reval_core import processes
from reval_core.beta import with_beta
from reval_core.checkpoints import checkpoint_rounds, load_learner
from reval_core.config import Config
from reval_core.draws import DrawReader
from reval_core.errors import Damaged
from reval_core.facts import Manifest
from reval_core.inspection import note_unloaded
from reval_core.learner import Drawn, Learner, Tick, Update
from reval_core.run_folder import RunFolder

log = logging.getLogger("reval")


@dataclass(frozen=True)
class Policy:
    """A policy by name: the one after `round` rounds. `identity` is its digest (see `reval_core.learner`)."""

    round: int
    identity: str
    averaged: bool = False
    """Whether it is a reference that is an average of policies (see `reval_core.learning.average`)."""

    @classmethod
    def of(cls, manifest: Manifest) -> Policy:
        """The policy that a warm start or a learning stage left."""
        return cls(manifest.round, manifest.info["policy"])


def recorded_policy(folder: RunFolder, round: int) -> Policy | None:
    """The policy after `round` rounds, if the run has come so far."""
    manifest = folder.manifest("learning" if round else "warm_start", round)
    return None if manifest is None else Policy.of(manifest)


def newest_policy(folder: RunFolder) -> Policy | None:
    """The policy that a run has come to, or None before its warm start."""
    left = folder.manifests(("warm_start", "learning"))
    return Policy.of(left[-1]) if left else None


def replay(
    folder: RunFolder,
    config: Config,
    draws: DrawReader,
    policy: Policy,
    before: int | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
    keep_before: bool = False,
) -> Learner:
    """The learner holding the weights of `policy`, in all processes of the run.

    It starts from the newest checkpoint up to `policy`, or of a round up to `before`. `tick` is told of rounds.
    With `keep_before` the learner keeps the weights of the round before `policy`, if it passes through them.
    Raises Damaged if a file that it needs is not what was recorded, or another policy comes out.
    """
    last = policy.round if before is None else before
    saved = [number for number in checkpoint_rounds(folder.checkpoints) if number <= last]
    if not saved:
        raise Damaged(f"{folder.checkpoints}: no checkpoint to rebuild round {policy.round} from")
    first = max(saved)
    if first < min(policy.round, folder.pruned_at()):
        stand = ", ".join(map(str, sorted(checkpoint_rounds(folder.checkpoints))))
        raise Damaged(
            f"{folder.path}: was pruned, so the draws after round {first} cannot be fed to a learner again; the "
            f"policies of its checkpoints stand: rounds {stand}"
        )
    checkpoint = folder.checkpoint(first)
    processes.tell("restore", checkpoint, torch.get_num_threads())
    try:
        with processes.together():
            learner = load_learner(checkpoint, folder.base, with_beta(config, folder))
    except Damaged as error:
        if str(error).startswith(str(checkpoint)):  # not the base of adapters, which every start reads
            note_unloaded(folder, first)
        raise Damaged(f"{error}; reval resume makes it again") from error
    for number in range(first + 1, policy.round + 1):
        learn(learner, draws.read(number), keep_before=keep_before and number == policy.round)
        tick(number - first, policy.round - first)
    if learner.policy != policy.identity:
        raise Damaged(
            f"{checkpoint}: replaying the draws after it gives another policy than round {policy.round} recorded; "
            "the versions or the number of threads differ, or a file was changed"
        )
    has_recorded_weights(folder, learner, policy.round)
    return learner


def has_recorded_weights(folder: RunFolder, learner: Learner, round: int) -> bool:
    """Whether a policy that was made again has the weights that were recorded after `round`.

    Raises Damaged if it has others, on a CPU. A GPU may add in another order, so there it is a warning.
    """
    learned = folder.manifest("learning", round)
    recorded = None if learned is None else learned.info.get("weights")  # older runs have none
    if recorded is None or learner.checksum() == recorded:
        return True
    if repeats_bits():
        raise Damaged(
            f"{folder.path}: learning from its draws again gives other weights than round {round} recorded; "
            "resume it on a processor of the kind that it began on, or start a new run"
        )
    log.warning(
        "%s: learning from its draws again gives other weights than round %s recorded, as kernels of a GPU may "
        "(see learner.deterministic); the run resumes from these",
        folder.path,
        round,
    )
    return False


def repeats_bits() -> bool:
    """Whether learning gives the same bits every time on this machine. A GPU promises that of some kernels only."""
    return not torch.cuda.is_available()


def learn(
    learner: Learner, draws: list[Drawn], tick: Tick = lambda done, total: None, keep_before: bool = False
) -> list[Update]:
    """Let the learner learn, in all processes of the run; this one keeps the weights from before if it is to."""
    processes.tell("learn", draws)
    with processes.together():
        return learner.learn(draws, tick, keep_before)
