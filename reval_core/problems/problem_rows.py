"""Conversion of rows to problems: each gives a problem with notes on anomalies, or the reason why it is
unusable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reval_core.answers import alternatives
from reval_core.answers.extraction import prepare_gold
from reval_core.config import PROMPTS, GoldMode, ProblemSet
from reval_core.problems.choices import options_of, with_options
from reval_core.problems.golds import LONGEST_GOLD, gold_text, is_missing, listed
from reval_core.problems.problem import Problem
from reval_core.problems.problem_columns import PROBLEM_FIELDS
from reval_core.problems.registered import REGISTERED
from reval_core.rows import Row, Unusable, choose_columns, last_turn, plain_text, turns_of, value_at, within

LONGEST_PROBLEM = 2000
"""Length in characters above which problems are reported."""

Note = Literal[
    "answer is a list",
    "answer is a number",
    "answer is a whole solution",
    "answer is a missing value",
    "several answers",
    "long answer",
    "long problem",
    "several turns of the user, of which the last is asked",
]
"""An anomaly of a usable row."""


@dataclass(frozen=True, slots=True)
class Read:
    """The result of reading a row."""

    place: str
    problem: Problem | None
    notes: tuple[Note, ...] = ()
    fault: str = ""
    """Why the row is unusable, if it is."""


def read_problems(rows: Sequence[Row], source: ProblemSet, origin: str, problem_set: str) -> list[Read]:
    """Convert rows to problems, in order.

    Args:
        rows: the rows.
        source: the settings of the set.
        origin: the file or dataset, for error messages.
        problem_set: the name of the set.

    Raises:
        InputError: if the columns cannot be determined.
    """
    known = REGISTERED[source.set] if source.set else None
    names = dict.fromkeys(name for row in rows for name in row.values)
    columns = choose_columns(origin, names, PROBLEM_FIELDS, source.columns, known.columns if known else {})
    gold_mode = source.gold_mode or (known.gold_mode if known else "all")
    places: dict[str, str] = {}
    found = []
    for row in rows:
        try:
            problem, notes = _problem(row, columns, gold_mode, problem_set)
            if problem.prompt_id in places:
                raise Unusable(
                    f"prompt_id: {problem.prompt_id!r} is already used on {places[problem.prompt_id]}; "
                    "every problem needs a unique id"
                )
        except Unusable as error:
            found.append(Read(row.place, None, fault=str(error)))
        else:
            places[problem.prompt_id] = within(row.place, origin)
            found.append(Read(row.place, problem, notes))
    return found


def stem(path: Path) -> str:
    """The name of the problem set in a file."""
    return path.name.removesuffix(path.suffix)


def _problem(
    row: Row, columns: Mapping[str, str], gold_mode: GoldMode, problem_set: str
) -> tuple[Problem, tuple[Note, ...]]:
    """The problem of a row and its notes. Raises Unusable if the row is unusable."""
    given = {field: value_at(row.values, column) for field, column in columns.items()}
    question, notes = _question(given["problem"]), _question_notes(given["problem"])
    choice = options_of(row.values, given.get("options"), given["answer"])
    if choice is not None:
        question, answer = with_options(question, *choice)
        gold_mode = "choice"
    else:
        answer = gold_text(given["answer"], gold_mode)
        notes += _answer_notes(given["answer"], answer, gold_mode)
    if len(question) > LONGEST_PROBLEM:
        notes.append("long problem")
    name = given.get("prompt_id")
    prompt_id = str(row.number) if name is None else plain_text(name, "prompt_id")
    return Problem(prompt_id, question, answer, gold_mode, problem_set, row.place), tuple(notes)


def _question(value: Any) -> str:
    """The problem's text. For a chat, the last user turn without the instruction of a known prompt."""
    asked = last_turn(value, "user", "problem")
    text = plain_text(asked, "problem")
    if asked is not value:
        for prompt in PROMPTS.values():
            text = text.removesuffix(prompt.user.partition("{problem}")[2])
    return plain_text(text, "problem")


def _question_notes(value: Any) -> list[Note]:
    several = len(turns_of(value, "user", "problem") or ()) > 1
    return ["several turns of the user, of which the last is asked"] if several else []


def _answer_notes(value: Any, answer: str, gold_mode: GoldMode) -> list[Note]:
    notes: list[Note] = []
    if listed(value) is not None:
        notes.append("answer is a list")
    elif not isinstance(value, str):
        notes.append("answer is a number")
    elif answer != value.strip():
        notes.append("answer is a whole solution")
    if gold_mode != "choice" and len(alternatives(prepare_gold(answer))) > 1:
        notes.append("several answers")
    if is_missing(answer):
        notes.append("answer is a missing value")
    if len(answer) > LONGEST_GOLD:
        notes.append("long answer")
    return notes
