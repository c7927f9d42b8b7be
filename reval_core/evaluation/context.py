"""One process's hold on an evaluation: what is asked, and what stays warm from sitting to sitting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import yaml

from reval_core.atomic_files import digest, publish_file
from reval_core.config.protocol import Protocol
from reval_core.engines.choice import choose, make_engine
from reval_core.engines.engine import Completion, Request, Sampling, in_batches
from reval_core.evaluation.directory import EvaluationDirectory
from reval_core.evaluation.model_source import ModelSource
from reval_core.evaluation.rendered_prompts import EvaluationProblems, evaluation_problems
from reval_core.model.loading import stop_ids, tokenizer_of
from reval_core.model.low_precision import compute_in
from reval_core.pipeline.run_context import explained_disk, make_verifier
from reval_core.problems import Problem, problems_digest
from reval_core.problems.asked import left_out_counts, prompts_in
from reval_core.storage.tables import SCHEMA_VERSION, Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


log = logging.getLogger("reval")


@dataclass(frozen=True)
class BenchmarkRun:
    """One policy and one set of problems."""

    number: int
    """Its place in the folder, where its facts lie under it."""
    key: str
    """The digest of all that its responses depend on."""
    name: str
    """The problem set's."""
    problems: tuple[Problem, ...]


class EvaluationContext:
    """Everything that the stages of an evaluation share. Open it with `open_evaluation_context`."""

    def __init__(self, directory: EvaluationDirectory, source: ModelSource, protocol: Protocol) -> None:
        self.directory = directory
        self.source = source
        self.protocol = protocol
        self.kept: set[str] = set()
        """The stages of this sitting that were there already. Whoever reads it empties it."""
        self.progress: Callable[[str, int, int, int], None] = lambda stage, benchmark, done, total: None
        """Told of long work: the stage, its sitting, and how many of how many pieces are done."""
        self.stage_now = ("", 0)
        """The stage at work, and its sitting."""
        self.worked_seconds = 0.0
        """The time that stages took."""
        if protocol.threads is not None:
            torch.set_num_threads(protocol.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = tokenizer_of(source.model)
        asked = evaluation_problems(directory, source, protocol, self.tokenizer)
        for name, one in left_out_counts(asked.left_out).items():
            log.warning("%s: %s problems are not asked, the first of them %s", name, one["problems"], one["first"])
        self.prompts = asked.prompts
        """By a problem's text, its prompt as text and as tokens."""
        self.kind = choose(source.model, protocol.engine).kind
        """The engine's."""
        self.sampling = Sampling(
            protocol.temperature, protocol.max_tokens, stop_ids(source.model, self.tokenizer, protocol.stop)
        )
        self.settings = digest(
            [protocol.seed, protocol.samples, protocol.temperature, protocol.max_tokens, self.sampling.stop_ids],
            protocol.prompt.model_dump(mode="json"),
            [self.kind, getattr(protocol.engine, "dtype", protocol.precision), protocol.problems_per_shard],
            SCHEMA_VERSION,
        )
        """The digest of all that responses depend on beside the policy and the problems."""
        if not asked.is_recorded:
            if asked.file.exists() and prompts_in(asked.file) is None:
                log.warning("%s: is corrupt; prompts are rendered again", asked.file)
            asked.prompts.usable().publish(asked.file, asked.reading)
        self.benchmarks = [self._benchmark(name, problems) for name, problems in asked.sets.items()]
        self.engine = make_engine(source.model, protocol.engine, self.kind, self.tokenizer, directory, source.seed)
        self.verifier = make_verifier(protocol.verification, protocol.reward)
        self._model: PreTrainedModel | None = None

    def benchmark(self, number: int) -> BenchmarkRun:
        """The sitting of this number."""
        return next(one for one in self.benchmarks if one.number == number)

    def judged(self, benchmark: BenchmarkRun) -> None:
        """Note that a sitting is done: from now on the tables show it."""
        self.directory.make_current(self.source.identity, self.settings, benchmark.name, benchmark.number)

    def request_seed(self, problem: Problem, sample: int) -> int:
        """The seed of one response. It does not depend on the policy, so that two policies meet the same chance."""
        return int(digest(self.protocol.seed, problem.problem_set, problem.prompt_id, sample)[:15], 16)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """The place of each request and its completion, as they end."""
        if not requests:
            return
        self.tick(0, len(requests))  # the weights are read, and an engine may take a while to start
        size = self.protocol.problems_per_shard * self.protocol.samples
        try:
            self.engine.load(self._loaded(), self.source.identity)
            yield from in_batches(self.engine, requests, self.sampling, size)
        finally:
            self.engine.rest()

    def title(self, stage: str, number: int) -> str:
        """What people call a stage at work."""
        work = {"rollouts": "responses to", "evaluation": "verdicts on"}[stage]
        return f"{work} {self.benchmark(number).name}"

    def tick(self, done: int, total: int) -> None:
        """Tell how far the stage at work is."""
        self.progress(*self.stage_now, done, total)

    def memory_advice(self, stage: str) -> str:
        """The settings that an evaluation needs less memory with."""
        if self.engine.name == "vllm":
            return "lower engine.gpu_memory_utilization"
        return "lower problems_per_shard or samples"

    def take_in(self, manifest: Manifest) -> None:
        """There is no store beside the facts."""

    def rewind(self, stage: str, round: int) -> None:
        """Sittings do not depend on one another."""

    def close(self) -> None:
        """Stop the engine and the verifier's workers."""
        with ExitStack() as stack:
            stack.callback(self.engine.close)
            stack.callback(self.verifier.close)

    def _loaded(self) -> PreTrainedModel:
        if self._model is None:
            model = self.source.load(self.source.model)
            # An engine of its own only reads the weights: they need not go by way of the GPU.
            if self.engine.dtype is None:
                compute_in(model.to(self.device), self.protocol.precision, self.source.seed)
            self._model = model
        return self._model

    def _benchmark(self, name: str, problems: tuple[Problem, ...]) -> BenchmarkRun:
        # A run's policy is named by its weights alone: what its tokenizer makes of the problems counts as well.
        read = digest([self.prompts[problem.problem][1] for problem in problems])
        key = digest(self.source.identity, self.settings, problems_digest(problems), read)
        return BenchmarkRun(self.directory.benchmark(key), key, name, problems)


def check_evaluation(directory: EvaluationDirectory, source: ModelSource, protocol: Protocol) -> EvaluationProblems:
    """See that every problem can be asked, and that stop tokens are tokens. Returns what would be asked.

    Raises InputError naming the first that does not.
    """
    tokenizer = tokenizer_of(source.model)
    stop_ids(source.model, tokenizer, protocol.stop)
    return evaluation_problems(directory, source, protocol, tokenizer)


@contextmanager
def open_evaluation_context(
    directory: EvaluationDirectory, source: ModelSource, protocol: Protocol
) -> Iterator[EvaluationContext]:
    """Hold the folder and open an evaluation in it. Raises InputError if another process holds it."""
    with directory.lock(), explained_disk(directory):
        asked = {
            "model": source.source,
            "round": source.round,
            "policy": source.identity,
            **protocol.model_dump(mode="json"),
        }
        text = yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)
        publish_file(directory.protocol, lambda partial: partial.write_text(text, encoding="utf-8"))
        context = EvaluationContext(directory, source, protocol)
        try:
            yield context
        finally:
            context.close()
