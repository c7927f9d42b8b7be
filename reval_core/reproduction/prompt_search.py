"""Prompts for the one-prompt study: problems with the paper's success rates under the initial policy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field

from reval_core.atomic_files import publish_file
from reval_core.config import Config, ProblemSet
from reval_core.config.protocol import Protocol
from reval_core.config.section import Section


class PromptSearch(Section):
    """A search for prompts of given difficulty: many problems are sampled a few times, the nearest ones often."""

    base: str
    """The config whose initial policy is sampled, in the parent of this file's directory."""
    problems: ProblemSet
    """The problem set to search; its `limit` is the number of problems sampled."""
    scout_samples: int = Field(ge=1)
    """Responses per problem in the first pass."""
    candidates: int = Field(ge=1)
    """Number of nearest problems per level that are sampled again."""
    samples: int = Field(ge=1)
    """Responses per candidate; the standard error of an initial success rate is at most 0.5 / √samples."""
    levels: dict[str, float] = Field(min_length=1)
    """The target initial success rate, by the level's name."""

    def protocol(self, problems: ProblemSet, samples: int, config: Config) -> Protocol:
        """Return the protocol that evaluates these problems with the settings of the run `config`."""
        together = 16 * config.generation.trajectories
        return Protocol(
            benchmarks=(problems,),
            samples=samples,
            prompt=config.problems.prompt,
            temperature=config.generation.temperature,
            max_tokens=config.generation.max_tokens,
            stop=config.generation.stop,
            problems_per_shard=max(1, min(together, config.evaluation.batch or together) // samples),
            engine=config.engine,
            threads=config.threads,
            verification=config.verification,
        )


@dataclass(frozen=True)
class MeasuredProblem:
    """A problem with its success rate under the initial policy."""

    prompt_id: str
    problem: str
    answer: str
    rate: float
    samples: int


def nearest(measured: Iterable[MeasuredProblem], rate: float, count: int) -> list[MeasuredProblem]:
    """Return the problems whose rates are nearest to `rate`; ties are broken by id."""
    return sorted(measured, key=lambda one: (abs(one.rate - rate), one.prompt_id))[:count]


def write_prompts(path: Path, problems: Iterable[MeasuredProblem]) -> None:
    """Write problems with their measured rates as a problem set for training."""
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in problems]
    publish_file(path, lambda partial: partial.write_text("".join(lines), encoding="utf-8"))


def read_prompt(path: Path) -> MeasuredProblem:
    """Read the only prompt in a file."""
    return MeasuredProblem(**json.loads(path.read_text(encoding="utf-8")))
