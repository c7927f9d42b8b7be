"""Files of responses to import: a problem, a response, and a gold answer or reward per row."""

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
"""Each row needs a gold answer or a reward."""

_EXAMPLE = '{"problem": …, "response": …, "gold": …}'


@dataclass(frozen=True, slots=True)
class Response:
    """One row: a response to a problem with the gold answer, a given reward, or both."""

    place: str
    """The file and the line or row, from 1, for error messages."""
    problem: str
    response: str
    """The unchanged text; may be empty."""
    gold: str | None
    reward: float | None


def read_responses(path: Path, columns: Mapping[str, str], gold_mode: GoldMode) -> list[Response]:
    """Read all rows of a file in any format of `read_rows`.

    Args:
        path: the file.
        columns: column names by field, as the user specified them.
        gold_mode: what a gold answer that lists several values requires.

    Raises:
        InputError: naming file, row and column of the first unusable row.
    """
    return read_as(path, RESPONSE_FIELDS, columns, _EXAMPLE, partial(_response, gold_mode=gold_mode))


def _response(value: dict[str, Any], place: str, gold_mode: GoldMode) -> Response:
    # An empty CSV cell is a missing value.
    gold, reward = (None if value[field] == "" else value[field] for field in ("gold", "reward"))
    if gold is None and reward is None:
        raise Unusable("gold: is missing, and reward as well; give one of them")
    response = text_of(last_turn(value["response"], "assistant", "response"), "response")
    return Response(
        place=place,
        problem=plain_text(last_turn(value["problem"], "user", "problem"), "problem"),
        response=whole_text(response, "response"),
        gold=None if gold is None else gold_text(gold, gold_mode, "gold"),
        reward=None if reward is None else number_of(reward, "reward"),
    )
