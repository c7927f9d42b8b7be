"""Report on a problem file before training: counts, anomalies, duplicates, overlap with test sets."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reval_core.config import ProblemSet
from reval_core.errors import InputError
from reval_core.problems.contamination import Overlap, contaminated, normalised
from reval_core.problems.golds import LONGEST_GOLD, gold_kind
from reval_core.problems.problem import Problem
from reval_core.problems.problem_rows import LONGEST_PROBLEM, Read
from reval_core.problems.problem_sets import load_problems, read_set
from reval_core.problems.registered import REGISTERED, find_set
from reval_core.rows import within


@dataclass(frozen=True)
class Check:
    """The report on a problem set. Places are lines or rows of its file."""

    origin: str
    rows: int
    faults: Mapping[str, Sequence[str]]
    """The places of unusable rows, by the reason."""
    notes: Mapping[str, Sequence[str]]
    """The places of usable rows with anomalies, by the anomaly."""
    kinds: Mapping[str, int]
    """The number of gold answers by their kind: integer, number, …"""
    lengths: tuple[int, int, int]
    """The length in characters of the shortest, the median and the longest problem; zeros if there is none."""
    tests: Mapping[str, int]
    """The sizes of the test sets that it was compared with."""
    copies: Sequence[str]
    """The test sets with exactly the same problems: the set is one of them, and not compared with itself."""
    overlaps: Sequence[Overlap]

    @property
    def overlapping(self) -> list[str]:
        """The ids of the problems that also occur in a test set."""
        return list(dict.fromkeys(overlap.train.prompt_id for overlap in self.overlaps))

    @property
    def trainable(self) -> bool:
        """Whether it can be trained on without changes."""
        return not self.faults and not self.overlaps


def check_set(source: ProblemSet, tests: Mapping[str, Sequence[Problem]]) -> Check:
    """Check every row of a set, and compare the set with test sets, given by name.

    Raises InputError if its file cannot be read, or its columns cannot be determined.
    """
    origin, rows = read_set(source)
    found = [read for read in rows if read.problem is not None]
    problems = [read.problem for read in rows if read.problem is not None]
    faults: dict[str, list[str]] = defaultdict(list)
    for read in rows:
        if read.problem is None:
            faults[_kind_of_fault(read.fault)].append(within(read.place, origin))
    texts = {normalised(problem.problem) for problem in problems}
    copies = [name for name, test in tests.items() if {normalised(one.problem) for one in test} == texts]
    compared = {name: test for name, test in tests.items() if name not in copies}
    lengths = [len(problem.problem) for problem in problems]
    return Check(
        origin=origin,
        rows=len(rows),
        faults=faults,
        notes={**_notes(found, origin), **_duplicates(found, origin)},
        kinds=dict(Counter(gold_kind(one.answer, one.gold_mode) for one in problems).most_common()),
        lengths=(min(lengths), round(statistics.median(lengths)), max(lengths)) if lengths else (0, 0, 0),
        tests={name: len(test) for name, test in compared.items()},
        copies=copies,
        overlaps=contaminated(problems, [one for test in compared.values() for one in test]),
    )


def known_tests(names: Sequence[str]) -> tuple[dict[str, list[Problem]], dict[str, str]]:
    """Load the test sets to compare with.

    Args:
        names: registered sets or files. If empty, all registered test sets that are found; sets that are incomplete
            or cannot be read are skipped.

    Returns:
        The test sets by name, and the reasons for skipped ones by name.

    Raises:
        InputError: if a given set cannot be read, or two sets have the same name.
    """
    if not names:
        return _registered_tests()
    found: dict[str, list[Problem]] = {}
    for source in map(_named, names):
        problems = load_problems(source, seed=0)
        name = problems[0].problem_set
        if name in found:
            raise InputError(f"--against: two sets are named {name}; rename one of the files")
        found[name] = problems
    return found, {}


def _registered_tests() -> tuple[dict[str, list[Problem]], dict[str, str]]:
    found: dict[str, list[Problem]] = {}
    left_out: dict[str, str] = {}
    for name, one in REGISTERED.items():
        if one.split == "test" and find_set(name) is not None:
            try:
                found[name] = load_problems(ProblemSet(set=name, unusable="drop"), seed=0)
            except InputError as error:
                left_out[name] = str(error)
    return found, left_out


def _named(name: str) -> ProblemSet:
    registered = next((known for known in REGISTERED if known == name), None)
    if registered is None and not Path(name).exists():
        raise InputError(f"--against {name}: is neither a file nor a registered set ({', '.join(REGISTERED)})")
    return ProblemSet(set=registered, path=None if registered else name, unusable="drop")


def _notes(found: Sequence[Read], origin: str) -> dict[str, list[str]]:
    limits = {"long problem": LONGEST_PROBLEM, "long answer": LONGEST_GOLD}
    notes: dict[str, list[str]] = defaultdict(list)
    for read in found:
        for note in read.notes:
            name = f"{note} (over {limits[note]:,} characters)" if note in limits else note
            notes[name].append(within(read.place, origin))
    return notes


def _duplicates(found: Sequence[Read], origin: str) -> dict[str, list[str]]:
    """The rows that repeat an earlier problem: with the same answer, or with another one."""
    first: dict[str, Problem] = {}
    again: dict[str, list[str]] = defaultdict(list)
    for read in found:
        assert read.problem is not None, "rows without a problem were filtered out"
        before = first.setdefault(normalised(read.problem.problem), read.problem)
        if before is not read.problem:
            kind = "the same answer" if before.answer == read.problem.answer else "another answer"
            again[f"the same problem again, {kind}"].append(within(read.place, origin))
    return again


def _kind_of_fault(fault: str) -> str:
    """A fault without the parts that are specific to its row."""
    return re.sub(r"(['\"]).*\1", "…", fault.partition(";")[0])
