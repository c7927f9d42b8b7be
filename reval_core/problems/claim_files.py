"""Files of responses with known answers, for judging: a claim on each row."""

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

# CSV holds text only, and an empty cell where there is nothing.
_FLAGS = {"": None, "true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_EXAMPLE = '{"gold": …, "response": …}'


@dataclass(frozen=True)
class ClaimRow:
    """A claim, where it stands (the file and the line or row, from 1), and whether it should be right."""

    place: str
    claim: Claim
    expected: bool | None


def read_claims(path: Path, columns: Mapping[str, str], gold_mode: GoldMode) -> list[ClaimRow]:
    """All rows of a file, of any kind that `read_rows` reads.

    `columns` are those that the user names, and `gold_mode` is that of rows that have none.
    Raises InputError naming file, row and column of the first row that cannot be used, or a column that no row has.
    """
    return read_as(path, CLAIM_FIELDS, columns, _EXAMPLE, partial(_claim, gold_mode=gold_mode))


def _claim(value: dict[str, Any], place: str, gold_mode: GoldMode) -> ClaimRow:
    mode = value["gold_mode"] or gold_mode
    if mode not in get_args(GoldMode):
        raise Unusable(f"gold_mode: {mode!r} is no mode; take one of {', '.join(get_args(GoldMode))}")
    problem = last_turn(value["problem"], "user", "problem")
    # Texts may be empty or hold half a character here: those are judged.
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
