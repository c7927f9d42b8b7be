"""The settings in which the compared runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reval_core.comparison.sides import Side


def settings(sides: Sequence[Side]) -> dict[str, list[str]]:
    """Return the settings that are not the same in all runs: the value in each run by the setting's name."""
    values = [dict(_leaves(side.source.settings)) for side in sides]
    names = dict.fromkeys(name for one in values for name in one)
    differing = [name for name in names if any(one.get(name) != values[0].get(name) for one in values)]
    return {name: [_shown(one, name) for one in values] for name in differing}


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting with its full name, such as learner.lr."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "–"
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
