"""A problem with its gold answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from reval_core.atomic_files import digest
from reval_core.config import GoldMode


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem and its gold answer. `prompt_id` is unique within a run's problem set."""

    prompt_id: str
    problem: str
    answer: str
    gold_mode: GoldMode = "all"
    """What a gold answer that lists several values requires; `choice`: the gold is a letter from A to J."""
    problem_set: str = ""
    """Name of its set: the registered name, the file's stem, the hub name or the kind of arithmetic."""
    place: str = field(default="", compare=False)
    """The file and the line or row, for error messages. Not part of the problem's identity."""

    def content(self) -> dict[str, str]:
        """The fields that identify the problem, as a JSON object."""
        return {name: value for name, value in asdict(self).items() if name != "place"}

    def __str__(self) -> str:
        """The name of the problem in error messages."""
        return self.place or f"{self.prompt_id} of {self.problem_set}"


def problems_digest(problems: Iterable[Problem]) -> str:
    """The digest of the contents of the problems, in order."""
    return digest([problem.content() for problem in problems])
