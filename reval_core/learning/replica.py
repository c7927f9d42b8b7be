"""The models of one process of a run: the learner, and the reference while trajectories are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from reval_core.atomic_files import check_directory
from reval_core.config import Config
from reval_core.learning import processes
from reval_core.learning.checkpoints import checkpoint_state
from reval_core.learning.learner import Learner
from reval_core.learning.shared_scoring import Groups, Scored, Scoring, Texts, shared_scores
from reval_core.learning.trained_weights import is_sharded, make_weights, release
from reval_core.model.layers import set_up
from reval_core.model.loading import load_model
from reval_core.model.lora import swapped_adapters
from reval_core.model.low_precision import round_weights
from reval_core.model.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLICY, BEFORE = "policy", "before"
"""The learner's model, and the same with the weights from before its last updates. See `Replica.scores`."""


class Replica:
    """The models of one process of a run. Every process does the same with them."""

    def __init__(self, path: Path, config: Config) -> None:
        self.learner: Learner | None = None
        """The learner, once a checkpoint is loaded."""
        self.device = processes.start()
        self._path = path
        self._config = config
        self._reference: tuple[str, nn.Module] | None = None
        """The identity of the last reference, and its scorer: in CPU memory, or sharded."""

    def scores(
        self,
        by: str,
        texts: Texts,
        groups: Groups,
        scoring: Scoring,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Scored]:
        """Score micro-batches in all processes. See `shared_scores`.

        Args:
            by: The model: `POLICY`, `BEFORE`, or the directory of a reference, relative to the run directory.
            texts: The trajectories.
            groups: The rows of each micro-batch.
            scoring: How they are scored.
            tick: Called with the trajectories done and their total.

        Raises:
            CorruptData: If the reference is not what was saved.
        """
        with self._scorer(by) as scorer:
            as_in_updates = scoring.as_in_updates and self.learner is not None
            with self.learner.as_in_updates() if as_in_updates and self.learner else nullcontext():
                found = shared_scores(scorer, self.device, texts, groups, scoring, tick)
            release(scorer)
        return found

    def forget_reference(self) -> None:
        """Free the memory of the reference."""
        self._reference = None

    @contextmanager
    def _scorer(self, by: str) -> Iterator[nn.Module]:
        """The model that scores, on the device inside the context."""
        if by in (POLICY, BEFORE):
            assert self.learner is not None, "the first process loads a learner before it scores"
            with self.learner.as_before() if by == BEFORE else nullcontext():
                yield self.learner.weights.scorer
        elif self._config.model.lora is not None:
            assert self.learner is not None, "the reference's adapters are loaded into the learner's model"
            check_directory(self._path / by)
            with swapped_adapters(self.learner.model, self._path / by, self._config.seed):
                yield self.learner.weights.scorer
        else:
            with self._reference_in(self._path / by) as scorer:
                yield scorer

    @contextmanager
    def _reference_in(self, directory: Path) -> Iterator[nn.Module]:
        """The reference saved in `directory`. It is loaded once and kept until another is requested."""
        identity, kept = checkpoint_state(directory)["policy"], self._reference
        if kept is None or kept[0] != identity:
            self._reference = kept = None  # free its memory before another one is loaded
            self._reference = kept = identity, self._load_reference(directory)
        with nullcontext() if is_sharded(self._config.learner) else on_device(kept[1], self.device):
            yield kept[1]

    def _load_reference(self, directory: Path) -> nn.Module:
        """The scorer of the model saved in `directory`: in CPU memory, or sharded."""
        check_directory(directory)
        model, learner = load_model(directory, self._config.model), self._config.learner
        if is_sharded(learner):
            return make_weights(model, learner, self._config.seed, self.device).scorer
        if learner.precision == "bfloat16":
            round_weights(model, self._config.seed, self.device)
        set_up(model, learner.packed, learner.compiles_on(self.device.type))
        return Scorer(model.cpu())


@contextmanager
def on_device(model: PreTrainedModel | nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Context manager that moves a model's tensors to `device`, and restores the original tensors afterwards."""
    kept = {one: one.data for one in chain(model.parameters(), model.buffers())}
    try:
        for tensor, data in kept.items():
            tensor.data = data.to(device)
        yield model
    finally:
        for tensor, data in kept.items():
            tensor.data = data
