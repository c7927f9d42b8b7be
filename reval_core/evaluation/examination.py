"""One process's hold on an evaluation: what is asked, and what stays warm from sitting to sitting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import yaml

from reval_core.config.protocol import Protocol
from reval_core.engines.base import Completion, Request, Sampling, in_batches
from reval_core.engines.choice import choose, make_engine
from reval_core.evaluation.folder import EvaluationFolder
from reval_core.evaluation.prompts import ExaminedProblems, examined_problems
from reval_core.evaluation.subject import Subject
from reval_core.facts import SCHEMA_VERSION, Manifest
from reval_core.files import digest, publish_file
from reval_core.learning.copy import compute_in
from reval_core.models import stop_ids, tokenizer_of
from reval_core.problems import Problem, problems_digest
from reval_core.problems.asked import left_out_counts, prompts_in
from reval_core.session import explained_disk, make_verifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel


log = logging.getLogger("reval")


@dataclass(frozen=True)
class Sitting:
    """One policy and one set of problems."""

    number: int
    """Its place in the folder, where its facts lie under it."""
    key: str
    """The digest of all that its responses depend on."""
    name: str
    """The problem set's."""
    problems: tuple[Problem, ...]


class Examination:
    """Everything that the stages of an evaluation share. Open it with `open_examination`."""

    def __init__(self, folder: EvaluationFolder, subject: Subject, protocol: Protocol) -> None:
        self.folder = folder
        self.subject = subject
        self.protocol = protocol
        self.kept: set[str] = set()
        """The stages of this sitting that were there already. Whoever reads it empties it."""
        self.progress: Callable[[str, int, int, int], None] = lambda stage, sitting, done, total: None
        """Told of long work: the stage, its sitting, and how many of how many pieces are done."""
        self.stage_now = ("", 0)
        """The stage at work, and its sitting."""
        self.worked_seconds = 0.0
        """The time that stages took."""
        if protocol.threads is not None:
            torch.set_num_threads(protocol.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = tokenizer_of(subject.model)
        asked = examined_problems(folder, subject, protocol, self.tokenizer)
        for name, one in left_out_counts(asked.left_out).items():
            log.warning("%s: %s problems are not asked, the first of them %s", name, one["problems"], one["first"])
        self.prompts = asked.prompts
        """By a problem's text, its prompt as text and as tokens."""
        self.kind = choose(subject.model, protocol.engine).kind
        """The engine's."""
        self.sampling = Sampling(
            protocol.temperature, protocol.max_tokens, stop_ids(subject.model, self.tokenizer, protocol.stop)
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
        self.sittings = [self._sitting(name, problems) for name, problems in asked.sets.items()]
        self.engine = make_engine(subject.model, protocol.engine, self.kind, self.tokenizer, folder, subject.seed)
        self.verifier = make_verifier(protocol.verification, protocol.reward)
        self._model: PreTrainedModel | None = None

    def sitting(self, number: int) -> Sitting:
        """The sitting of this number."""
        return next(one for one in self.sittings if one.number == number)

    def judged(self, sitting: Sitting) -> None:
        """Note that a sitting is done: from now on the tables show it."""
        self.folder.make_current(self.subject.identity, self.settings, sitting.name, sitting.number)

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
            self.engine.load(self._loaded(), self.subject.identity)
            yield from in_batches(self.engine, requests, self.sampling, size)
        finally:
            self.engine.rest()

    def title(self, stage: str, number: int) -> str:
        """What people call a stage at work."""
        work = {"rollouts": "responses to", "evaluation": "verdicts on"}[stage]
        return f"{work} {self.sitting(number).name}"

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
            model = self.subject.load(self.subject.model)
            # An engine of its own only reads the weights: they need not go by way of the GPU.
            if self.engine.dtype is None:
                compute_in(model.to(self.device), self.protocol.precision, self.subject.seed)
            self._model = model
        return self._model

    def _sitting(self, name: str, problems: tuple[Problem, ...]) -> Sitting:
        # A run's policy is named by its weights alone: what its tokenizer makes of the problems counts as well.
        read = digest([self.prompts[problem.problem][1] for problem in problems])
        key = digest(self.subject.identity, self.settings, problems_digest(problems), read)
        return Sitting(self.folder.sitting(key), key, name, problems)


def check_examination(folder: EvaluationFolder, subject: Subject, protocol: Protocol) -> ExaminedProblems:
    """See that every problem can be asked, and that stop tokens are tokens. Returns what would be asked.

    Raises InputError naming the first that does not.
    """
    tokenizer = tokenizer_of(subject.model)
    stop_ids(subject.model, tokenizer, protocol.stop)
    return examined_problems(folder, subject, protocol, tokenizer)


@contextmanager
def open_examination(folder: EvaluationFolder, subject: Subject, protocol: Protocol) -> Iterator[Examination]:
    """Hold the folder and open an evaluation in it. Raises InputError if another process holds it."""
    with folder.lock(), explained_disk(folder):
        asked = {
            "model": subject.source,
            "round": subject.round,
            "policy": subject.identity,
            **protocol.model_dump(mode="json"),
        }
        text = yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)
        publish_file(folder.protocol, lambda partial: partial.write_text(text, encoding="utf-8"))
        examination = Examination(folder, subject, protocol)
        try:
            yield examination
        finally:
            examination.close()
