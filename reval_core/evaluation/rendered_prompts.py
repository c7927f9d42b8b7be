"""The prompts of an evaluation, rendered once per directory so that repeating it reuses every response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reval_core.atomic_files import digest
from reval_core.config.protocol import Protocol
from reval_core.evaluation.directory import EvaluationDirectory
from reval_core.evaluation.model_source import ModelSource
from reval_core.model.loading import reading_digest
from reval_core.problems import Problem, load_sets
from reval_core.problems.recorded import Prompts, read_by
from reval_core.problems.selection import Candidates, TokenLimit, modified, prompts_in, rendered, select
from reval_core.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EvaluationProblems:
    """The problems of an evaluation with their prompts."""

    sets: Mapping[str, tuple[Problem, ...]]
    left_out: Mapping[str, Mapping[Problem, str]]
    """Maps a set to its skipped problems and the reasons."""
    prompts: Prompts
    file: Path
    """Where the prompts are kept for all policies with the same prompt turns and tokenizer."""
    reading: str
    """Digest of that tokenizer."""
    is_recorded: bool
    """Whether the file already holds all of them."""
    record: int | None
    """When the file was last published."""
    tokenizer: PreTrainedTokenizerBase
    """The model's tokenizer."""


def evaluation_problems(
    directory: EvaluationDirectory, source: ModelSource, protocol: Protocol, tokenizer: PreTrainedTokenizerBase
) -> EvaluationProblems:
    """Return the problems of a protocol with their prompts as first rendered.

    A run that is evaluated with its own prompt settings reuses its own prompts.

    Raises:
        InputError: A prompt cannot be rendered, a problem cannot be used (the first is named), or two sets have
            the same name.
    """
    sets = benchmark_sets(protocol)
    limit = TokenLimit.of(source.model, protocol.engine, "max_tokens", protocol.max_tokens)
    candidates = {
        name: Candidates(problems, limit, source.unusable == "drop")
        for source, (name, problems) in zip(protocol.benchmarks, sets.items(), strict=True)
    }
    turns, reading = protocol.prompt.model_dump(mode="json"), reading_digest(tokenizer)
    file = directory.path / "prompts" / f"{digest(turns, reading)[:16]}.parquet"
    record, kept = modified(file), prompts_in(file) or Prompts()
    of_run = Prompts()
    if turns == source.protocol_defaults.get("prompt"):
        own = RunDirectory(Path(source.source)).prompts
        of_run = (prompts_in(own) if read_by(own) == reading else None) or Prompts()
    known = kept.with_more(of_run.usable())
    texts = [problem.problem for problems in sets.values() for problem in problems]
    new = [text for text in texts if text not in known]
    prompts = known.with_more(rendered(new, protocol.prompt, source.model, tokenizer)) if new else known
    selected = select(candidates, prompts)
    is_recorded = all(text in kept for text in texts)
    return EvaluationProblems(
        selected.sets, selected.left_out, prompts, file, reading, is_recorded, record, tokenizer
    )


def benchmark_sets(protocol: Protocol) -> dict[str, tuple[Problem, ...]]:
    """Return the problems of a protocol by the name of their set.

    Raises:
        InputError: A problem cannot be used, or two sets have the same name.
    """
    limits = [[limit for limit in (source.limit, protocol.limit) if limit] for source in protocol.benchmarks]
    sources = [
        source.model_copy(update={"limit": min(limit, default=None)})
        for source, limit in zip(protocol.benchmarks, limits, strict=True)
    ]
    return load_sets(sources, protocol.seed, "benchmarks")
