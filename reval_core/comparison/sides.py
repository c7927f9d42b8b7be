"""The compared sides: the evaluated policy of a run or of an evaluation, with its answers per problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from reval_core.atomic_files import read_json
from reval_core.config.loader import load_config
from reval_core.errors import InputError
from reval_core.evaluation.directory import EvaluationDirectory
from reval_core.replay_buffer.index import sql_views
from reval_core.report.formats import statement
from reval_core.report.sections import STAGES, Ask
from reval_core.storage.run_directory import RunDirectory, existing_run
from reval_core.storage.tables import Manifest

LAST = "(SELECT max(round) FROM evaluations)"

# Every query is executed on each run separately, as by `reval sql RUN`.
_ANSWERS = """
    SELECT
        problem_set, prompt_id, problem, gold, gold_mode,
        count(*) AS samples,
        count(*) FILTER (correct) AS right_answers,
        avg(response_length) AS tokens,
        avg((finish_reason = 'length')::INTEGER) AS truncated
    FROM evaluations
    WHERE round = {round}
    GROUP BY ALL
    ORDER BY problem_set, prompt_id, problem
"""

# Accuracy is averaged over the problems shared by all runs, so it is queried per problem.
_LEARNING = """
    SELECT round, problem_set, prompt_id, avg(correct::INTEGER) AS share
    FROM evaluations
    GROUP BY ALL
    ORDER BY ALL
"""

_SPENT = """
    SELECT
        round,
        (sum(tokens) OVER so_far)::BIGINT AS tokens,
        sum({seconds}) OVER so_far AS seconds
    FROM rounds
    WINDOW so_far AS (ORDER BY round)
    ORDER BY round
"""

LEARNING = statement(_LEARNING)
SPENT = statement(_SPENT, seconds=" + ".join(f"{stage}_seconds" for stage in STAGES))


@dataclass(frozen=True)
class Problem:
    """A problem as posed and judged. Two runs share it if all fields are equal."""

    problem_set: str
    prompt_id: str
    problem: str
    gold: str | None
    gold_mode: str | None


@dataclass(frozen=True)
class Answers:
    """A policy's responses to one problem."""

    samples: int
    right: int
    tokens: float
    """Mean tokens per response."""
    truncated: float
    """The share of responses truncated at the length limit."""

    @property
    def share(self) -> float:
        """The share of right responses."""
        return self.right / self.samples

    @property
    def solved(self) -> bool:
        """Whether more than half of the responses are right."""
        return 2 * self.right > self.samples


@dataclass(frozen=True)
class Point:
    """An evaluated policy during training."""

    round: int
    accuracy: float
    tokens: float | None
    """Response tokens generated for training up to this round; None while the round is not recorded."""
    seconds: float | None
    """Time spent in rounds up to this round; None likewise."""


@dataclass(frozen=True)
class Source:
    """A directory with evaluations: its published manifests and its settings."""

    path: Path
    manifests: tuple[Manifest, ...]
    settings: Mapping[str, Any]
    starts: int
    """Number of times it was started."""


class Side:
    """One run or evaluation of a comparison, at one evaluated round."""

    def __init__(self, name: str, source: Source, ask: Ask, round: int, round_sql: str | int) -> None:
        self.name = name
        self.source = source
        self.ask = ask
        """Executes SQL over this run's tables."""
        self.round = round
        self.round_sql = round_sql
        """The round as written in queries: an expression for the last one, so that all sides share the query."""
        self.answers_query = statement(_ANSWERS, round=round_sql)

    @cached_property
    def answers(self) -> dict[Problem, Answers]:
        """Its answers by problem, ordered by set and id."""
        found = {}
        for row in self.ask(self.answers_query):
            problem = Problem(row["problem_set"], row["prompt_id"], row["problem"], row["gold"], row["gold_mode"])
            found[problem] = Answers(row["samples"], row["right_answers"], row["tokens"], row["truncated"])
        return found

    def curve(self, problems: Sequence[Problem]) -> list[Point]:
        """Return its accuracy on these problems at every evaluated round; for several sets, the mean of means."""
        wanted = {(one.problem_set, one.prompt_id) for one in problems}
        shares: dict[int, dict[str, list[float]]] = {}
        for row in self.ask(LEARNING):
            if (row["problem_set"], row["prompt_id"]) in wanted:
                shares.setdefault(row["round"], {}).setdefault(row["problem_set"], []).append(row["share"])
        spent = {0: (0.0, 0.0)} | {row["round"]: (row["tokens"], row["seconds"]) for row in self.ask(SPENT)}
        return [
            Point(round, _mean([_mean(one) for one in sets.values()]), *spent.get(round, (None, None)))
            for round, sets in shares.items()
        ]


def find_source(path: Path) -> Source:
    """Find the run or the evaluation in a directory.

    Raises:
        InputError: There is neither, or it has no evaluated policy.
    """
    evaluation = EvaluationDirectory(path)
    return _of_evaluation(evaluation) if evaluation.protocol.exists() else _of_run(existing_run(path))


def _of_run(directory: RunDirectory) -> Source:
    settings = load_config(directory.config).model_dump(mode="json")
    kind = settings["rollouts"].get("source", "engine")
    if kind != "engine":
        what = "an import" if kind == "import" else "a run on stored responses"
        raise InputError(
            f"{directory.path}: is {what}, which has no held-out evaluations; evaluate its policy with reval eval "
            "and compare the evaluation"
        )
    starts = len(list(directory.attempts.glob("*.json")))
    return Source(directory.path, tuple(directory.manifests(("evaluation", "recording"))), settings, starts)


def _of_evaluation(directory: EvaluationDirectory) -> Source:
    """Return the latest results: the directory may also hold other policies and problem sets."""
    if not directory.results.exists():
        raise InputError(f"{directory.path}: is not finished; run its reval eval again to resume it")
    results = read_json(directory.results)
    numbers = {one["sitting"] for one in results["benchmarks"]}
    settings = {"model": results["source"], "round": results["round"], **results["protocol"]}
    return Source(directory.path, tuple(directory.manifests_of(numbers, ("evaluation",))), settings, starts=1)


@contextmanager
def open_sides(paths: Sequence[Path], round: int | None = None) -> Iterator[list[Side]]:
    """Open the runs and evaluations in these directories, each at its last evaluated round, or all at `round`.

    Raises:
        InputError: A directory is given twice or has no such evaluation.
    """
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{path}: is given twice; a run cannot be compared with itself")
    with ExitStack() as stack:
        sides = []
        for path, name in zip(paths, _names(places), strict=True):
            source = find_source(path)
            connection = stack.enter_context(closing(sql_views(source.path, source.manifests)))
            ask: Ask = cache(lambda sql, views=connection: views.sql(sql).to_arrow_table().to_pylist())
            evaluated = _evaluated(path, ask, round)
            sides.append(Side(name, source, ask, evaluated, LAST if round is None else round))
        yield sides


def _evaluated(path: Path, ask: Ask, round: int | None) -> int:
    """Return the round to compare."""
    rounds: list[int] = [row["round"] for row in ask("SELECT DISTINCT round FROM evaluations ORDER BY round")]
    if not rounds:
        raise InputError(f"{path}: has no evaluations yet; a run has one once its initial policy is evaluated")
    if round is not None and round not in rounds:
        raise InputError(
            f"{path}: --round: round {round} was not evaluated; evaluated rounds: {', '.join(map(str, rounds))}"
        )
    return rounds[-1] if round is None else round


def _names(places: Sequence[Path]) -> list[str]:
    """Return the names of the directories, with as many parents as needed to make them unique."""
    names = [place.name for place in places]
    for parts in range(2, max(len(place.parts) for place in places)):
        names = [
            "/".join(place.parts[-parts:]) if names.count(name) > 1 else name
            for place, name in zip(places, names, strict=True)
        ]
    return names


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
