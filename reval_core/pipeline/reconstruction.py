"""Reconstruction of a policy: load the newest checkpoint before it, then learn from the recorded draws."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from reval_core import launch
from reval_core.config import Config
from reval_core.errors import CorruptData
from reval_core.learning import distributed
from reval_core.learning.checkpoints import checkpoint_rounds, load_learner
from reval_core.learning.draws import DrawReader
from reval_core.learning.learner import Learner, Tick
from reval_core.learning.resolution import with_beta
from reval_core.learning.update import Drawn, Update
from reval_core.pipeline.integrity import note_unloaded
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest

log = logging.getLogger("reval")


@dataclass(frozen=True)
class Policy:
    """A reference to the policy after `round` rounds. `identity` is its digest (see `learning.learner`)."""

    round: int
    identity: str
    averaged: bool = False
    """Whether it is a reference model averaged over policies (see `reval_core.pipeline.reference_average`)."""

    @classmethod
    def of(cls, manifest: Manifest) -> Policy:
        """The policy that a warm start or a learning stage produced."""
        return cls(manifest.round, manifest.info["policy"])


def recorded_policy(directory: RunDirectory, round: int) -> Policy | None:
    """The policy after `round` rounds; None if the run has not completed that round."""
    manifest = directory.manifest("learning" if round else "warm_start", round)
    return None if manifest is None else Policy.of(manifest)


def newest_policy(directory: RunDirectory) -> Policy | None:
    """The newest policy of a run, or None before its warm start."""
    manifests = directory.manifests(("warm_start", "learning"))
    return Policy.of(manifests[-1]) if manifests else None


def reconstruct(
    directory: RunDirectory,
    config: Config,
    draws: DrawReader,
    policy: Policy,
    before: int | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
    keep_before: bool = False,
) -> Learner:
    """Reconstruct the learner with the weights of `policy`, in all processes of the run.

    Args:
        directory: The run directory.
        config: The config of the run.
        draws: Reads the recorded draws.
        policy: The policy to reconstruct.
        before: Start from a checkpoint of this round or earlier; by default, of the round of `policy` or earlier.
        tick: Called with the number of reconstructed and of all rounds.
        keep_before: Whether the learner keeps the weights of the round before `policy`, if it passes through them.

    Raises:
        CorruptData: If a file differs from what was recorded, or the result is another policy.
    """
    last = policy.round if before is None else before
    saved = [number for number in checkpoint_rounds(directory.checkpoints) if number <= last]
    if not saved:
        raise CorruptData(f"{directory.checkpoints}: no checkpoint to reconstruct round {policy.round} from")
    first = max(saved)
    if first < min(policy.round, directory.pruned_at()):
        available = ", ".join(map(str, sorted(checkpoint_rounds(directory.checkpoints))))
        raise CorruptData(
            f"{directory.path}: was pruned, so the updates after round {first} cannot be recomputed; the policies "
            f"of its checkpoints are available: rounds {available}"
        )
    checkpoint = directory.checkpoint(first)
    try:
        with distributed.together("restore", round=first, threads=torch.get_num_threads()):
            learner = load_learner(checkpoint, directory.base, with_beta(config, directory))
    except CorruptData as error:
        if str(error).startswith(str(checkpoint)):  # not the base model of adapters, which every start checks
            note_unloaded(directory, first)
        raise CorruptData(f"{error}; reval resume regenerates it") from error
    for number in range(first + 1, policy.round + 1):
        learn(learner, number, draws.read(number), keep_before=keep_before and number == policy.round)
        tick(number - first, policy.round - first)
    if learner.policy != policy.identity:
        raise CorruptData(
            f"{checkpoint}: reconstruction from it gives a different policy than round {policy.round} recorded; "
            "the versions or the number of threads differ, or a file was changed"
        )
    has_recorded_weights(directory, learner, policy.round)
    return learner


def has_recorded_weights(directory: RunDirectory, learner: Learner, round: int) -> bool:
    """Whether a reconstructed policy has the weights that were recorded after `round`.

    On a GPU a difference is logged as a warning, since kernels may sum in another order.

    Raises:
        CorruptData: If the weights differ, on a CPU.
    """
    learned = directory.manifest("learning", round)
    recorded = None if learned is None else learned.info.get("weights")  # older runs have none
    if recorded is None or distributed.checksum(learner) == recorded:
        return True
    if repeats_bits(directory, round):
        raise CorruptData(
            f"{directory.path}: reconstruction gives different weights than round {round} recorded; resume it on "
            "the kind of processor that it was started on, or start a new run"
        )
    log.warning(
        "%s: reconstruction gives different weights than round %s recorded, as nondeterministic GPU kernels or "
        "another number of processes may (see learner.deterministic); the run resumes from the new weights",
        directory.path,
        round,
    )
    return False


def repeats_bits(directory: RunDirectory, round: int) -> bool:
    """Whether this process can repeat the learning of a run's rounds up to `round` to the bit.

    On a GPU only some kernels are deterministic, and other numbers of processes sum gradients in another order.
    """
    learned = [one for one in directory.manifests(("learning",)) if one.round <= round]
    counts = {one.info.get("processes", launch.count()) for one in learned}  # older runs fix the number
    return not torch.cuda.is_available() and counts <= {launch.count()}


def learn(
    learner: Learner,
    round: int,
    draws: list[Drawn],
    tick: Tick = lambda done, total: None,
    keep_before: bool = False,
) -> list[Update]:
    """Run the updates of a round in all processes. With `keep_before` they keep the previous weights."""
    with distributed.together("learn", round=round, keep_before=keep_before):
        return learner.learn(draws, tick, keep_before)
