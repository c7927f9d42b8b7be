"""The per-process state of an evaluation: its benchmark runs, and the engine and verifier that they share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import yaml

from reval_core.atomic_files import digest, publish_file
from reval_core.config.protocol import Protocol
from reval_core.engines.choice import choose, make_engine
from reval_core.engines.engine import Engine, Sampling
from reval_core.engines.response import Response
from reval_core.evaluation.directory import EvaluationDirectory
from reval_core.evaluation.model_source import ModelSource
from reval_core.evaluation.rendered_prompts import EvaluationProblems, evaluation_problems
from reval_core.model.loading import stop_ids, tokenizer_of
from reval_core.model.low_precision import compute_in
from reval_core.pipeline.reconstruction import Policy
from reval_core.pipeline.stage_context import StageContext, warn_of_left_out
from reval_core.problems import Problem, problems_digest
from reval_core.problems.selection import modified, prompts_in
from reval_core.storage.full_disk import explained_disk
from reval_core.storage.tables import SCHEMA_VERSION
from reval_core.verification import Verifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


log = logging.getLogger("reval")


@dataclass(frozen=True)
class BenchmarkRun:
    """One policy and one set of problems."""

    number: int
    """Its number in the evaluation directory; the tables are filed under it. From 1."""
    key: str
    """Digest of everything that its responses depend on."""
    name: str
    """Name of the problem set."""
    problems: tuple[Problem, ...]


class EvaluationContext(StageContext):
    """State shared by the stages of an evaluation. Open it with `open_evaluation_context`."""

    directory: EvaluationDirectory
    engine: Engine

    def __init__(
        self,
        directory: EvaluationDirectory,
        source: ModelSource,
        protocol: Protocol,
        selected: EvaluationProblems | None = None,
    ) -> None:
        self.source = source
        self.policy = Policy(source.round, source.identity)
        """The evaluated policy."""
        self.protocol = protocol
        if protocol.threads is not None:
            torch.set_num_threads(protocol.threads)
        if selected is None or selected.record != modified(selected.file):
            selected = evaluation_problems(directory, source, protocol, tokenizer_of(source.model))
        tokenizer = selected.tokenizer
        warn_of_left_out(selected.left_out)
        kind = choose(source.model, protocol.engine).kind
        self._sampling = Sampling(
            protocol.temperature, protocol.max_tokens, stop_ids(source.model, tokenizer, protocol.stop)
        )
        self.settings = digest(
            [protocol.seed, protocol.samples, protocol.temperature, protocol.max_tokens, self._sampling.stop_ids],
            protocol.prompt.model_dump(mode="json"),
            [kind, getattr(protocol.engine, "dtype", protocol.precision), protocol.problems_per_shard],
            SCHEMA_VERSION,
        )
        """Digest of everything that responses depend on, except the policy and the problems."""
        if not selected.is_recorded:
            if selected.file.exists() and prompts_in(selected.file) is None:
                log.warning("%s: is corrupt; rendering the prompts again", selected.file)
            selected.prompts.usable().publish(selected.file, selected.reading)
        engine = make_engine(source.model, protocol.engine, kind, tokenizer, directory, source.seed)
        verifier = Verifier.of(protocol.verification, protocol.reward)
        super().__init__(directory, tokenizer, selected.prompts, engine, verifier)
        self.benchmarks = [self._benchmark(name, problems) for name, problems in selected.sets.items()]
        self._model: PreTrainedModel | None = None

    def benchmark(self, number: int) -> BenchmarkRun:
        """Return the benchmark run with this number."""
        return next(one for one in self.benchmarks if one.number == number)

    def judged(self, benchmark: BenchmarkRun) -> None:
        """Mark a benchmark run as complete, so that the tables show it."""
        self.directory.make_current(self.source.identity, self.settings, benchmark.name, benchmark.number)

    def request_seed(self, request: Response) -> int:
        """Return the seed of one response. It is the same for every policy, so comparisons share randomness."""
        return int(digest(self.protocol.seed, request.problem_set, request.prompt_id, request.sample)[:15], 16)

    def decoding(self) -> tuple[Sampling, int]:
        """The decoding parameters of the protocol, and the number of requests of a shard."""
        return self._sampling, self.protocol.problems_per_shard * self.protocol.samples

    def title(self, stage: str, round: int) -> str:
        """Return the displayed name of a stage of a benchmark run."""
        work = {"rollouts": "responses to", "evaluation": "verdicts on"}[stage]
        return f"{work} {self.benchmark(round).name}"

    def memory_advice(self, stage: str) -> str:
        """Return the settings that reduce the memory of an evaluation."""
        if self.engine.name == "vllm":
            return "lower engine.gpu_memory_utilization"
        return "lower problems_per_shard or samples"

    def model_of(self, policy: Policy) -> AbstractContextManager[PreTrainedModel]:
        """Return the evaluated model, loaded once."""
        assert policy == self.policy, "an evaluation has one policy"
        if self._model is None:
            model = self.source.load(self.source.model)
            # A separate engine only reads the weights, so the model can stay on the CPU.
            if self.engine.dtype is None:
                compute_in(model.to(self.device), self.protocol.precision, self.source.seed)
            self._model = model
        return nullcontext(self._model)

    def _benchmark(self, name: str, problems: tuple[Problem, ...]) -> BenchmarkRun:
        # A run's policy is identified by its weights alone, so the key also covers the tokenized prompts.
        read = digest([self.prompts[problem.problem][1] for problem in problems])
        key = digest(self.source.identity, self.settings, problems_digest(problems), read)
        return BenchmarkRun(self.directory.benchmark(key), key, name, problems)


def check_evaluation(
    directory: EvaluationDirectory, source: ModelSource, protocol: Protocol, tokenizer: PreTrainedTokenizerBase
) -> EvaluationProblems:
    """Check that every problem can be used and that the stop tokens exist.

    Returns:
        The problems that the evaluation would use.

    Raises:
        InputError: Names the first problem or stop token that cannot be used.
    """
    stop_ids(source.model, tokenizer, protocol.stop)
    return evaluation_problems(directory, source, protocol, tokenizer)


@contextmanager
def open_evaluation_context(
    directory: EvaluationDirectory,
    source: ModelSource,
    protocol: Protocol,
    problems: EvaluationProblems | None = None,
) -> Iterator[EvaluationContext]:
    """Lock the directory and open an evaluation in it, with the problems that `check_evaluation` returned.

    They are loaded again if there are none, or if another process has recorded prompts since.

    Raises:
        InputError: Another process holds the lock.
    """
    with directory.lock(), explained_disk(directory):
        recorded = {
            "model": source.source,
            "round": source.round,
            "policy": source.identity,
            **protocol.model_dump(mode="json"),
        }
        text = yaml.safe_dump(recorded, sort_keys=False, allow_unicode=True)
        publish_file(directory.protocol, lambda partial: partial.write_text(text, encoding="utf-8"))
        with closing(EvaluationContext(directory, source, protocol, problems)) as context:
            yield context
