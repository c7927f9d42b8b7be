"""What users name by short names: presets and problem sets."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from reval_core.config import ProblemField, ProblemSet, SetName
from reval_core.config.packaged import PACKAGED
from reval_core.config.places import check_local
from reval_core.errors import InputError
from reval_core.problems.problem_columns import PROBLEM_FIELDS
from reval_core.problems.registered import REGISTERED
from reval_core.rows import column_options

PRESETS = PACKAGED / "evaluation"


def protocol_file(name: str) -> Path:
    """The file that `--preset` names: one of the packaged configs/evaluation/, or any YAML file by its path."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise InputError(f"--preset {name}: unknown; available are {', '.join(known)}, or give your own YAML file")
    return PRESETS / f"{name}.yaml"


def protocol_overrides(benchmarks: str | None, samples: int | None, limit: int | None) -> list[str]:
    """The settings that are given by options or arguments of their own, as overrides."""
    given = [_benchmarks_override(benchmarks)] if benchmarks else []
    return given + [
        f"{name}={value}" for name, value in (("samples", samples), ("limit", limit)) if value is not None
    ]


def _benchmarks_override(text: str) -> str:
    """`gsm8k:50,own.jsonl` as an override of `benchmarks`: registered sets and files, optionally limited."""
    sets = []
    for part in text.split(","):
        name, _, limit = part.strip().partition(":")
        if not name or (limit and not limit.isdecimal()):
            raise InputError(f"--benchmarks {text}: {part!r} must look like gsm8k, gsm8k:50 or problems.jsonl:50")
        place = f"path: {json.dumps(name)}" if Path(name).suffix else f"set: {name}"
        sets.append(f"{{{place}, limit: {limit}}}" if limit else f"{{{place}}}")
    return f"benchmarks=[{', '.join(sets)}]"


def use_data(directory: Path) -> None:
    """Look for registered sets in this directory first."""
    check_local(directory, "--data")
    if not directory.is_dir():
        raise InputError(f"--data {directory}: is not a directory")
    os.environ["REVAL_DATA"] = os.pathsep.join(filter(None, [str(directory), os.environ.get("REVAL_DATA")]))


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
