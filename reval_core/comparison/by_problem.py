"""The comparison per problem: which side does better, and a response of each side for the largest differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reval_core.comparison.pairs import Pair, Row
from reval_core.comparison.sections import points, style_of
from reval_core.comparison.sides import Answers, Problem, Side
from reval_core.report.page import Html, folded, number, section, sql_note, statement, tag

SHOWN = 8
"""Number of the largest gains and losses that are expanded, with a response of each side."""

MOST = 500
"""Maximum number of further problems that are listed."""

HEAD, TAIL = 2000, 1000
"""Characters of a long response that are shown, at its start and its end."""

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


def problem_by_problem(pair: Pair, place: int) -> Html:
    """Render the win table of a run compared with the baseline. `place` is the run's index among the sides."""
    title = f"{pair.run.name} compared with {pair.baseline.name}, per problem"
    differing = [row for row in pair.rows if row.difference]
    if not differing:
        return section(title, f"Both have the same accuracy on every problem. {_left_out(pair)}")
    gains = [row for row in differing if row.difference > 0][:SHOWN]
    losses = [row for row in reversed(differing) if row.difference < 0][:SHOWN]
    open_problems = [row.problem for row in (*gains, *losses)]
    queries = [_query(side, open_problems) for side in (pair.baseline, pair.run)]
    responses = [_responses(side, query) for side, query in zip((pair.baseline, pair.run), queries, strict=True)]
    parts = [
        tag(
            "div",
            tag("h3", heading),
            _table(pair, place, [(row, _both(row, pair, place, responses)) for row in rows]),
            class_="block",
        )
        for heading, rows in (("Largest gains", gains), ("Largest losses", losses))
        if rows
    ]
    shown = set(open_problems)
    rest = sorted((row for row in differing if row.problem not in shown), key=lambda row: -abs(row.difference))
    if rest:
        listed = sorted(rest[:MOST], key=lambda row: -row.difference)
        summary = f"{len(rest):,} more that differ" + (f", the {MOST} largest of them" if len(rest) > MOST else "")
        parts.append(folded(summary, _table(pair, place, [(row, Html("")) for row in listed])))
    return section(title, in_counts(pair), *parts, sql_note(pair.run.answers_query, *dict.fromkeys(queries)))


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


def _table(pair: Pair, place: int, rows: Sequence[tuple[Row, Html]]) -> Html:
    """Render problems with each side's share of right answers, each with the details that expand below it."""
    names = (tag("b", pair.baseline.name, class_=style_of(0)), tag("b", pair.run.name, class_=style_of(place)))
    head = [tag("th", "problem"), *(tag("th", name, class_="right name") for name in names)]
    head.append(tag("th", "points", class_="right"))
    lines = []
    for row, opened in rows:
        problem = tag("span", row.problem.problem, class_="say clamp")
        gold = tag("small", "answer ", tag("span", row.problem.gold or "–", class_="say"))
        lines.append(
            tag(
                "tr",
                tag("td", problem, gold, class_="problem"),
                tag("td", _share(row.baseline), class_="right"),
                tag("td", _share(row.run), class_="right"),
                tag("td", points(row.difference), class_="right"),
                class_="over" if opened else None,
            )
        )
        if opened:
            lines.append(tag("tr", tag("td", opened, colspan="4", class_="opened")))
    return tag("table", tag("tr", *head), *lines)


def _share(answers: Answers) -> str:
    return f"{answers.right} of {answers.samples}"


def _both(row: Row, pair: Pair, place: int, responses: Sequence[Responses]) -> Html:
    """Render a right response of the better side next to a wrong one of the other side."""
    problem = row.problem
    gained = row.difference > 0
    shown = [
        _response(side.name, style, found[problem.problem_set, problem.prompt_id, problem.problem, right])
        for side, style, found, right in (
            (pair.baseline, style_of(0), responses[0], not gained),
            (pair.run, style_of(place), responses[1], gained),
        )
    ]
    return folded("both responses", tag("div", *shown, class_="pair"))


def _response(name: str, style: str, row: dict[str, Any]) -> Html:
    verdict = tag(
        "span",
        f"{'✓' if row['correct'] else '✗'} {row['verdict']}",
        class_="verdict yes" if row["correct"] else "verdict",
    )
    read = [", read as ", tag("span", row["extracted"], class_="say")] if row["extracted"] else []
    about = tag("span", *read, f", {row['response_length']:,} tokens", class_="unit")
    text = row["response"]
    if len(text) > HEAD + TAIL:
        between = tag("em", f" … {len(text) - HEAD - TAIL:,} characters … ")
        body = tag("div", text[:HEAD], between, text[-TAIL:], class_="tokens say")
    else:
        body = tag("div", text or "(nothing)", class_="tokens say")
    return tag("div", tag("p", tag("b", name, class_=f"name {style}"), " ", verdict, about), body, class_="answer")
