"""Loading of problem sets from the sources in the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reval_core.config import Problems, ProblemSet
from reval_core.errors import InputError
from reval_core.problems import arithmetic
from reval_core.problems.contamination import WORDS, contaminated
from reval_core.problems.hub import hub_rows
from reval_core.problems.order import shuffled
from reval_core.problems.problem import Problem
from reval_core.problems.problem_rows import Read, read_problems, stem
from reval_core.problems.registered import ENDINGS, REGISTERED, VARIABLE, directories, find_set
from reval_core.rows import read_rows


def load_problems(source: ProblemSet, seed: int) -> list[Problem]:
    """Load the problems of a set, in the order of the set; with a limit, that many, chosen by `seed`.

    Raises InputError naming file, line and field of the first unusable problem, unless the set drops such rows.
    """
    if source.arithmetic is not None:
        digits, operators = source.arithmetic.digits, source.arithmetic.operators
        name = arithmetic.set_name(digits, operators)
        made = arithmetic.problems(digits, operators, source.arithmetic.split)
        problems = [Problem(text, text, answer, problem_set=name) for text, answer in made]
    else:
        problems = _usable(source)
    if source.limit is None or source.limit >= len(problems):
        return problems
    kept = set(shuffled([problem.prompt_id for problem in problems], seed, "limit")[: source.limit])
    return [problem for problem in problems if problem.prompt_id in kept]


@dataclass(frozen=True)
class RunSets:
    """The problem sets of a run."""

    train: list[Problem]
    held_out: dict[str, tuple[Problem, ...]]
    """By the name of the set. Ids are unique within a set only."""


def load_run_sets(settings: Problems, seed: int) -> RunSets:
    """Load the training problems, without contaminated ones if the settings drop those, and the held-out sets.

    Raises InputError for the first unusable problem, if two held-out sets have the same name, or if no training
    problem is left.
    """
    train = [] if settings.train is None else load_problems(settings.train, seed)
    sets = RunSets(train, load_sets(settings.held_out, seed, "problems.held_out"))
    if settings.contaminated != "drop" or not train:
        return sets
    left_out = {overlap.train.prompt_id for overlap in contaminated(train, _tests(sets, settings, seed))}
    kept = [problem for problem in train if problem.prompt_id not in left_out]
    if not kept:
        raise InputError("problems.train: every problem also occurs in a test set; use another training set")
    return RunSets(kept, sets.held_out)


def load_sets(sources: Sequence[ProblemSet], seed: int, field: str) -> dict[str, tuple[Problem, ...]]:
    """Load the problems of several sets, by the names of the sets. Ids are unique within a set only.

    Raises InputError, naming the key `field` of the settings, if two sets have the same name.
    """
    sets: dict[str, tuple[Problem, ...]] = {}
    for source in sources:
        problems = tuple(load_problems(source, seed))
        name = problems[0].problem_set
        if name in sets:
            raise InputError(f"{field}: two sets are named {name}; remove one, or rename its file")
        sets[name] = problems
    return sets


def check_contamination(sets: RunSets, settings: Problems, seed: int) -> None:
    """Raise InputError if training problems also occur in a test set, with their number and an example."""
    found = contaminated(sets.train, _tests(sets, settings, seed))
    if found:
        first = min(found, key=lambda overlap: overlap.shared != "")
        rows = len({overlap.train.prompt_id for overlap in found})
        by_text = len({overlap.train.prompt_id for overlap in found if not overlap.shared})
        why = f"they share {first.shared[:80]!r}" if first.shared else "the same text"
        raise InputError(
            f"problems.train: {rows:,} of {len(sets.train):,} problems also occur in the test sets ({by_text:,} "
            f"with the same text, the others share {WORDS} consecutive words), for example {first.train.prompt_id} "
            f"of {first.train.problem_set} and {first.test.prompt_id} of {first.test.problem_set} ({why}); set "
            "problems.contaminated: drop to exclude them, or keep to train on them anyway"
        )


def _tests(sets: RunSets, settings: Problems, seed: int) -> list[Problem]:
    """All problems that must not be trained on: whole sets, regardless of their limits."""
    loaded = [*sets.held_out.values(), *([None] * len(settings.never_train_on))]
    whole = [
        load_problems(source.model_copy(update={"limit": None}), seed)
        if problems is None or source.limit is not None
        else problems
        for source, problems in zip((*settings.held_out, *settings.never_train_on), loaded, strict=True)
    ]
    return [problem for problems in whole for problem in problems]


def read_set(source: ProblemSet) -> tuple[str, list[Read]]:
    """Read a set: the origin of its rows, and the result of each row.

    Raises InputError if there is no such file or dataset, or if it is not the registered set that the settings
    name.
    """
    path = Path(source.path) if source.path else None
    if path is None and source.hub is None and source.set:
        path = find_set(source.set)
    if path is not None:
        origin, rows, name = str(path), read_rows(path), stem(path)
    else:
        hub = source.hub or (REGISTERED[source.set].hub if source.set else None)
        assert hub is not None, "a set has a source"
        try:
            origin, rows, name = f"hub {hub.name}", hub_rows(hub), hub.name.rpartition("/")[2]
        except InputError as error:
            raise error if source.hub else InputError(f"{_no_file(source)}, and {error}") from error
    known = REGISTERED[source.set] if source.set else None
    if known is not None and known.split == "test" and len(rows) not in known.sizes:
        sizes = " or ".join(map(str, known.sizes))
        raise InputError(
            f"{origin}: has {len(rows):,} rows, but {known.title} has {sizes}; to use it as a separate set, give "
            "its path without set; to use a part of the whole set, give a limit"
        )
    return origin, read_problems(rows, source, origin, source.set or name)


def _usable(source: ProblemSet) -> list[Problem]:
    origin, found = read_set(source)
    first = next((one for one in found if one.problem is None), None)
    if first is not None and source.unusable == "refuse":
        count = sum(one.problem is None for one in found)
        raise InputError(
            f"{first.place}: {first.fault}; fix it, or set unusable: drop to drop such rows "
            f"({count:,} of {len(found):,})"
        )
    problems = [one.problem for one in found if one.problem is not None]
    if not problems:
        raise InputError(f"{origin}: none of its {len(found)} rows can be used; see reval problems check")
    return problems


def _no_file(source: ProblemSet) -> str:
    assert source.set is not None, "only registered sets are searched for"
    searched = ", ".join(str(directory.absolute()) for directory in directories())
    endings = ", ".join(ENDINGS[:-1]) + " or " + ENDINGS[-1]
    return (
        f"{source.set}: no file {REGISTERED[source.set].files[0]}{endings} in {searched} (docs/problems.md "
        f"describes how to get it; {VARIABLE} sets other directories)"
    )
