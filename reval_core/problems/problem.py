"""A problem with its known answer."""

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
    """What a gold that lists several answers asks for; `choice`: the gold is a letter from A to J."""
    problem_set: str = ""
    """What it is counted under: the registered set, the file's stem, the hub's name or the kind of sums."""
    place: str = field(default="", compare=False)
    """Where it stands, for complaints: the file and the line or row. No part of what the problem is."""

    def content(self) -> dict[str, str]:
        """All that the problem is, as JSON."""
        return {name: value for name, value in asdict(self).items() if name != "place"}

    def __str__(self) -> str:
        """How complaints name it."""
        return self.place or f"{self.prompt_id} of {self.problem_set}"


def problems_digest(problems: Iterable[Problem]) -> str:
    """The digest of all that the problems are, in order."""
    return digest([problem.content() for problem in problems])
