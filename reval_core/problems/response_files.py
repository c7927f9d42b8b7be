"""Responses from elsewhere: a file with problem, response and what it is worth on each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reval_core.config import GoldMode
from reval_core.problems.golds import gold_text
from reval_core.rows import Fields, Unusable, last_turn, number_of, plain_text, read_as, text_of, whole_text

RESPONSE_FIELDS = Fields(
    names={
        "problem": (("problem",), ("question", "prompt"), ("messages", "conversations")),
        "response": (("response",), ("completion", "output", "generation"), ("messages", "conversations")),
        "gold": (("gold",), ("answer", "final_answer", "ground_truth", "reward_model.ground_truth")),
        "reward": (("reward",),),
    },
    required=("problem", "response"),
)
"""Of gold and reward each row needs one."""

_EXAMPLE = '{"problem": …, "response": …, "gold": …}'


@dataclass(frozen=True, slots=True)
class Response:
    """One row: a response to a problem, with the known answer, or with a reward from elsewhere, or with both."""

    place: str
    """Where it stands, for complaints: the file and the line or row, which count from 1."""
    problem: str
    response: str
    """As the file has it; it may be empty."""
    gold: str | None
    reward: float | None


def read_responses(path: Path, columns: Mapping[str, str], gold_mode: GoldMode) -> list[Response]:
    """All rows of a file of any kind that `read_rows` reads. `columns` are those that the user names.

    Raises InputError naming file, row and column of the first row that cannot be used.
    """
    return read_as(path, RESPONSE_FIELDS, columns, _EXAMPLE, partial(_response, gold_mode=gold_mode))


def _response(value: dict[str, Any], place: str, gold_mode: GoldMode) -> Response:
    # An empty cell of CSV is no value.
    gold, reward = (None if value[field] == "" else value[field] for field in ("gold", "reward"))
    if gold is None and reward is None:
        raise Unusable("gold: is missing, and so is reward; give one of them")
    response = text_of(last_turn(value["response"], "assistant", "response"), "response")
    return Response(
        place=place,
        problem=plain_text(last_turn(value["problem"], "user", "problem"), "problem"),
        response=whole_text(response, "response"),
        gold=None if gold is None else gold_text(gold, gold_mode, "gold"),
        reward=None if reward is None else number_of(reward, "reward"),
    )
