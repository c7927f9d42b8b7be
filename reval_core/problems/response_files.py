"""Files of responses to import: a problem, a response, and a gold answer or reward per row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from reval_core.atomic_files import digest
from reval_core.config import GoldMode
from reval_core.engines.response import Response
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


def read_responses(path: Path, columns: Mapping[str, str], gold_mode: GoldMode) -> list[Response]:
    """Read all rows of a file in any format of `read_rows`: responses with a text, and no tokens yet.

    Args:
        path: the file.
        columns: column names by field, as the user specified them.
        gold_mode: what a gold answer that lists several values requires.

    Raises:
        InputError: naming file, row and column of the first unusable row.
    """
    make = partial(_response, gold_mode=gold_mode, problem_set=path.stem)
    return read_as(path, RESPONSE_FIELDS, columns, _EXAMPLE, make)


def _response(value: dict[str, Any], place: str, gold_mode: GoldMode, problem_set: str) -> Response:
    # An empty CSV cell is a missing value.
    gold, reward = (None if value[field] == "" else value[field] for field in ("gold", "reward"))
    if gold is None and reward is None:
        raise Unusable("gold: is missing, and reward as well; give one of them")
    problem = plain_text(last_turn(value["problem"], "user", "problem"), "problem")
    return Response(
        prompt_id=digest(problem)[:16],
        problem=problem,
        gold=None if gold is None else gold_text(gold, gold_mode, "gold"),
        gold_mode=gold_mode,
        problem_set=problem_set,
        text=whole_text(text_of(last_turn(value["response"], "assistant", "response"), "response"), "response"),
        given_reward=None if reward is None else number_of(reward, "reward"),
        place=place,
    )
