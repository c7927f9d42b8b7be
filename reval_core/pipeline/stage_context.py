"""The per-process state that stages work with, in a run as in an evaluation."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from reval_core.engines.engine import in_batches
from reval_core.learning import processes
from reval_core.problems.selection import left_out_counts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from reval_core.engines.engine import Engine, Enough, Sampling
    from reval_core.engines.response import Response
    from reval_core.pipeline.reconstruction import Policy
    from reval_core.problems import Problem
    from reval_core.problems.recorded import Prompts
    from reval_core.storage.run_directory import RunDirectory
    from reval_core.storage.tables import Manifest
    from reval_core.verification import Verifier

log = logging.getLogger("reval")


class StageContext(ABC):
    """What the stages of a run or an evaluation share: the directory, the engine, the verifier, the progress.

    A run counts in rounds, an evaluation in benchmark runs; `round` below is the number of either.
    """

    def __init__(
        self,
        directory: RunDirectory,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        engine: Engine | None,
        verifier: Verifier,
    ) -> None:
        self.directory = directory
        self.device = processes.start()
        self.tokenizer = tokenizer
        self.prompts = prompts
        """The prompt of each problem, by the problem's text: as text and as tokens, as recorded at the start."""
        self.engine = engine
        """The generation engine; None in offline training."""
        self.verifier = verifier
        self.kept: set[str] = set()
        """The stages of this round that an earlier attempt had finished. The reader clears it."""
        self.progress: Callable[[str, int, int, int], None] = lambda stage, round, done, total: None
        """Called during long work with the stage, its round, and the number of completed and of all pieces."""
        self.stage_now = ("", 0)
        """The running stage and its round."""
        self.worked_seconds = 0.0
        """The seconds that stages of this process took."""

    @abstractmethod
    def memory_advice(self, stage: str) -> str:
        """The settings with which a stage needs less memory."""

    @abstractmethod
    def model_of(self, policy: Policy) -> AbstractContextManager[PreTrainedModel]:
        """The model with the weights of `policy`, inside the context."""

    @abstractmethod
    def decoding(self) -> tuple[Sampling, int]:
        """The decoding parameters, and the number of requests per call of an engine that does not stream."""

    def title(self, stage: str, round: int) -> str:
        """The name of a stage in messages."""
        name = stage.replace("_", " ")
        return f"{name} of round {round}" if round else name

    def begin(self, stage: str, round: int) -> None:
        """Note that a stage starts to work."""
        self.stage_now = (stage, round)

    def keep(self, manifest: Manifest) -> None:
        """Reuse what an earlier attempt at a stage has published."""
        self.kept.add(manifest.stage)

    def publish(self, manifest: Manifest) -> None:
        """Publish the manifest of a stage that has worked."""
        self.directory.publish(manifest)

    def tick(self, done: int, total: int) -> None:
        """Report the progress of the running stage."""
        self.progress(*self.stage_now, done, total)

    def generating(self) -> Engine:
        """The generation engine; must not be called in offline training."""
        assert self.engine is not None, "offline training has no engine"
        return self.engine

    def generate(
        self,
        policy: Policy,
        requests: Sequence[Response],
        enough: Enough | None = None,
        batch: int | None = None,
    ) -> Generator[tuple[int, Response]]:
        """Generate what is missing of these responses, by `policy`.

        Args:
            policy: The policy that generates.
            requests: The responses.
            enough: Decides when to stop; responses under way are then cut off.
            batch: The number of requests per call of an engine that does not stream; by default, those of a shard.

        Yields:
            The index of a response and the response, extended, in the order of completion.
        """
        if not requests:
            return
        engine, (sampling, per_shard) = self.generating(), self.decoding()
        self.tick(0, len(requests))  # loading weights and starting an engine may take long
        with self.model_of(policy) as model:
            try:
                engine.load(model, policy.identity)
                yield from in_batches(engine, requests, sampling, batch or per_shard, self.tick, enough)
            finally:
                engine.release_memory()

    def close(self) -> None:
        """Stop the verifier's workers and the engine, each even if the other fails."""
        with ExitStack() as stack:
            if self.engine is not None:
                stack.callback(self.engine.close)
            stack.callback(self.verifier.close)


def warn_of_left_out(left_out: Mapping[str, Mapping[Problem, str]]) -> None:
    """Log how many problems of each set are skipped, and the reason for the first."""
    for name, one in left_out_counts(left_out).items():
        log.warning("%s: %s problems are skipped, the first of them %s", name, one["problems"], one["first"])
