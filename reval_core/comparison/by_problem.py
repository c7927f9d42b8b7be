"""The comparison per problem: which side does better, and a response of each side for the largest differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reval_core.comparison.pairs import Pair, Row
from reval_core.comparison.sides import Problem, Side
from reval_core.report.formats import number, statement
from reval_core.report.sections import Section

SHOWN = 8
"""Number of the largest gains and losses that are expanded, with a response of each side."""

MOST = 500
"""Maximum number of further problems that are listed."""

# The first right and the first wrong response to each of these problems.
_RESPONSES = """
    SELECT problem_set, prompt_id, problem, correct, verdict, extracted, response_length, response
    FROM evaluations
    WHERE round = {round} AND (problem_set, prompt_id) IN ({problems})
    QUALIFY row_number() OVER (PARTITION BY problem_set, prompt_id, problem, correct ORDER BY sample) = 1
    ORDER BY ALL
"""

Responses = Mapping[tuple[str, str, str, bool], dict[str, Any]]
"""Maps (problem set, prompt id, problem text, correct) to a response."""


def problem_by_problem(pair: Pair, place: int) -> Section:
    """Return the problems that a run wins and loses against the baseline, the largest with a response of each side.

    `place` is the run's index among the sides.
    """
    differing = [row for row in pair.rows if row.difference]
    found = {"pair": pair, "place": place, "left_out": _left_out(pair)}
    if not differing:
        return found | {"differing": 0}
    gains = [row for row in differing if row.difference > 0][:SHOWN]
    losses = [row for row in reversed(differing) if row.difference < 0][:SHOWN]
    shown = dict.fromkeys(row.problem for row in (*gains, *losses))
    queries = [_query(side, [*shown]) for side in (pair.baseline, pair.run)]
    responses = [_responses(side, query) for side, query in zip((pair.baseline, pair.run), queries, strict=True)]
    rest = sorted((row for row in differing if row.problem not in shown), key=lambda row: -abs(row.difference))
    return found | {
        "differing": len(differing),
        "counts": in_counts(pair),
        "largest": {
            heading: [(row, _both(row, responses)) for row in rows]
            for heading, rows in (("Largest gains", gains), ("Largest losses", losses))
            if rows
        },
        "more": len(rest),
        "rest": [(row, ()) for row in sorted(rest[:MOST], key=lambda row: -row.difference)],
        "queries": [pair.run.answers_query, *dict.fromkeys(queries)],
    }


def in_counts(pair: Pair) -> str:
    """Return in words the number of problems that a run wins and loses."""
    run, baseline, whole = pair.run.name, pair.baseline.name, pair.whole
    text = (
        f"Of {whole.problems:,} problems {run} answers {whole.better:,} right more often than {baseline}, "
        f"{whole.worse:,} less often and {whole.same:,} as often (sign test: p = {number(whole.p)}). It solves "
        f"{whole.gained:,} problems (more than half of the responses are right) that {baseline} does not, and "
        f"{baseline} solves {whole.lost:,} that it does not. {_left_out(pair)}"
    )
    return text.rstrip()


def _left_out(pair: Pair) -> str:
    left_out = [
        f"{count:,} evaluated only for {side.name}"
        for side, count in ((pair.baseline, pair.only_baseline), (pair.run, pair.only_run))
        if count
    ]
    return f"Left out: {' and '.join(left_out)}." if left_out else ""


def _query(side: Side, problems: Sequence[Problem]) -> str:
    """Return the query for the displayed responses of a side."""
    listed = ", ".join(f"({_quoted(one.problem_set)}, {_quoted(one.prompt_id)})" for one in problems)
    return statement(_RESPONSES, round=side.round_sql, problems=listed)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _responses(side: Side, query: str) -> Responses:
    return {(row["problem_set"], row["prompt_id"], row["problem"], row["correct"]): row for row in side.ask(query)}


def _both(row: Row, responses: Sequence[Responses]) -> list[dict[str, Any]]:
    """Return a right response of the better side and a wrong one of the other side, the baseline's first."""
    problem = row.problem
    gained = row.difference > 0
    return [
        found[problem.problem_set, problem.prompt_id, problem.problem, right]
        for found, right in zip(responses, (not gained, gained), strict=True)
    ]
