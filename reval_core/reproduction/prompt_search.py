"""Prompts for the one-prompt study: problems that policy 0 solves as often as the paper's did theirs."""

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
    """How prompts of given difficulty are found: many problems asked a few times, the nearest asked often."""

    base: str
    """The config whose policy 0 is asked, beside this file's folder."""
    problems: ProblemSet
    """Where prompts are looked for; its `limit` is how many are asked."""
    scout_samples: int = Field(ge=1)
    """Responses to each of them."""
    candidates: int = Field(ge=1)
    """Of each level the nearest so many are asked again."""
    samples: int = Field(ge=1)
    """Responses to each candidate; the standard error of a start rate is at most 0.5 / √samples."""
    levels: dict[str, float] = Field(min_length=1)
    """The start rate that is wanted, by the level's name."""

    def protocol(self, problems: ProblemSet, samples: int, config: Config) -> Protocol:
        """The evaluation that asks these problems as the run of `config` would."""
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
class Asked:
    """A problem and how often policy 0 solves it."""

    prompt_id: str
    problem: str
    answer: str
    rate: float
    samples: int


def nearest(asked: Iterable[Asked], rate: float, count: int) -> list[Asked]:
    """The problems whose rates are nearest to the one wanted; of equals the first by name."""
    return sorted(asked, key=lambda one: (abs(one.rate - rate), one.prompt_id))[:count]


def write_prompts(path: Path, problems: Iterable[Asked]) -> None:
    """Publish problems as a file that a run can be trained on; the measured rate stands beside each."""
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in problems]
    publish_file(path, lambda partial: partial.write_text("".join(lines), encoding="utf-8"))


def read_prompt(path: Path) -> Asked:
    """The one prompt in a file."""
    return Asked(**json.loads(path.read_text(encoding="utf-8")))
