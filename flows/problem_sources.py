"""The problem set named on the command line: a file or a registered set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from reval_core.config import ProblemField, ProblemSet, SetName
from reval_core.config.places import check_local
from reval_core.errors import InputError
from reval_core.problems.problem_columns import PROBLEM_FIELDS
from reval_core.problems.registered import REGISTERED
from reval_core.rows import column_options


def named_set(file: Path, set_name: str | None, columns: Sequence[str]) -> ProblemSet:
    """The problems of a file, or of a registered set if its name is given as `file`.

    Raises InputError if `set_name` is not registered, or an entry of `columns` is invalid.
    """
    if set_name is not None and set_name not in REGISTERED:
        raise InputError(f"--set {set_name}: is not a registered set; known are {', '.join(REGISTERED)}")
    names = cast("dict[ProblemField, str]", column_options(columns, PROBLEM_FIELDS))
    if set_name is None and str(file) in REGISTERED and not file.exists():
        return ProblemSet(set=cast("SetName", str(file)), columns=names)
    check_local(file)
    return ProblemSet(path=str(file), set=set_name, columns=names)
