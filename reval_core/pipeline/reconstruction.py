"""Making a policy again: the newest checkpoint before it, then the recorded draws after that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from reval_core.config import Config
from reval_core.errors import CorruptData
from reval_core.learning import distributed
from reval_core.learning.beta import with_beta
from reval_core.learning.checkpoints import checkpoint_rounds, load_learner
from reval_core.learning.draws import DrawReader
from reval_core.learning.learner import Drawn, Learner, Tick, Update
from reval_core.pipeline.integrity import note_unloaded
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest

log = logging.getLogger("reval")


@dataclass(frozen=True)
class Policy:
    """A policy by name: the one after `round` rounds. `identity` is its digest (see `learning.learner`)."""

    round: int
    identity: str
    averaged: bool = False
    """Whether it is a reference that is an average of policies (see `reval_core.pipeline.reference_average`)."""

    @classmethod
    def of(cls, manifest: Manifest) -> Policy:
        """The policy that a warm start or a learning stage left."""
        return cls(manifest.round, manifest.info["policy"])


def recorded_policy(directory: RunDirectory, round: int) -> Policy | None:
    """The policy after `round` rounds, if the run has come so far."""
    manifest = directory.manifest("learning" if round else "warm_start", round)
    return None if manifest is None else Policy.of(manifest)


def newest_policy(directory: RunDirectory) -> Policy | None:
    """The policy that a run has come to, or None before its warm start."""
    left = directory.manifests(("warm_start", "learning"))
    return Policy.of(left[-1]) if left else None


def replay(
    directory: RunDirectory,
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
    saved = [number for number in checkpoint_rounds(directory.checkpoints) if number <= last]
    if not saved:
        raise CorruptData(f"{directory.checkpoints}: no checkpoint to rebuild round {policy.round} from")
    first = max(saved)
    if first < min(policy.round, directory.pruned_at()):
        stand = ", ".join(map(str, sorted(checkpoint_rounds(directory.checkpoints))))
        raise CorruptData(
            f"{directory.path}: was pruned, so the draws after round {first} cannot be fed to a learner again; the "
            f"policies of its checkpoints stand: rounds {stand}"
        )
    checkpoint = directory.checkpoint(first)
    distributed.tell("restore", checkpoint, torch.get_num_threads())
    try:
        with distributed.together():
            learner = load_learner(checkpoint, directory.base, with_beta(config, directory))
    except CorruptData as error:
        if str(error).startswith(str(checkpoint)):  # not the base of adapters, which every start reads
            note_unloaded(directory, first)
        raise CorruptData(f"{error}; reval resume makes it again") from error
    for number in range(first + 1, policy.round + 1):
        learn(learner, draws.read(number), keep_before=keep_before and number == policy.round)
        tick(number - first, policy.round - first)
    if learner.policy != policy.identity:
        raise CorruptData(
            f"{checkpoint}: replaying the draws after it gives another policy than round {policy.round} recorded; "
            "the versions or the number of threads differ, or a file was changed"
        )
    has_recorded_weights(directory, learner, policy.round)
    return learner


def has_recorded_weights(directory: RunDirectory, learner: Learner, round: int) -> bool:
    """Whether a policy that was made again has the weights that were recorded after `round`.

    Raises Damaged if it has others, on a CPU. A GPU may add in another order, so there it is a warning.
    """
    learned = directory.manifest("learning", round)
    recorded = None if learned is None else learned.info.get("weights")  # older runs have none
    if recorded is None or learner.checksum() == recorded:
        return True
    if repeats_bits():
        raise CorruptData(
            f"{directory.path}: learning from its draws again gives other weights than round {round} recorded; "
            "resume it on a processor of the kind that it began on, or start a new run"
        )
    log.warning(
        "%s: learning from its draws again gives other weights than round %s recorded, as kernels of a GPU may "
        "(see learner.deterministic); the run resumes from these",
        directory.path,
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
    distributed.tell("learn", draws)
    with distributed.together():
        return learner.learn(draws, tick, keep_before)
