"""Files of responses with gold answers, for grading: one claim per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from reval_core.problems.golds import gold_text, listed
from reval_core.problems.response_files import RESPONSE_FIELDS
from reval_core.rows import Fields, Unusable, last_turn, read_as, text_of
from reval_core.verification.claims import Claim, GoldMode

CLAIM_FIELDS = Fields(
    names={
        **{field: RESPONSE_FIELDS.names[field] for field in ("gold", "response")},
        "problem": (("problem",),),
        "gold_mode": (("gold_mode",),),
        "truncated": (("truncated",),),
        "expected": (("expected",), ("label",)),
    },
    required=("gold", "response"),
)

# CSV contains only text, and an empty cell for a missing value.
_FLAGS = {"": None, "true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_EXAMPLE = '{"gold": …, "response": …}'


@dataclass(frozen=True)
class ClaimRow:
    """A claim, its place (the file and the line or row, from 1), and the expected verdict, if given."""

    place: str
    claim: Claim
    expected: bool | None


def read_claims(path: Path, columns: Mapping[str, str], gold_mode: GoldMode) -> list[ClaimRow]:
    """Read all rows of a file in any format of `read_rows`.

    Args:
        path: the file.
        columns: column names by field, as the user specified them.
        gold_mode: the mode of rows that specify none.

    Raises:
        InputError: naming file, row and column of the first unusable row, or a column that no row has.
    """
    return read_as(path, CLAIM_FIELDS, columns, _EXAMPLE, partial(_claim, gold_mode=gold_mode))


def _claim(value: dict[str, Any], place: str, gold_mode: GoldMode) -> ClaimRow:
    mode = value["gold_mode"] or gold_mode
    if mode not in get_args(GoldMode):
        raise Unusable(f"gold_mode: must be one of {', '.join(get_args(GoldMode))}, not {mode!r}")
    problem = last_turn(value["problem"], "user", "problem")
    # Empty texts and lone surrogates are allowed here: they are graded.
    claim = Claim(
        gold=text_of(value["gold"], "gold")
        if listed(value["gold"]) is None
        else gold_text(value["gold"], mode, "gold"),
        response=text_of(last_turn(value["response"], "assistant", "response"), "response"),
        truncated=_flag(value["truncated"], "truncated") or False,
        gold_mode=mode,
        problem="" if problem is None else text_of(problem, "problem"),
    )
    return ClaimRow(place, claim, _flag(value["expected"], "expected"))


def _flag(value: Any, field: str) -> bool | None:
    flag = "" if value is None else str(value).lower()
    if flag in _FLAGS:
        return _FLAGS[flag]
    raise Unusable(f"{field}: must be true or false, not {value!r}")
