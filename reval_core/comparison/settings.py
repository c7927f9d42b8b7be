"""The settings in which the compared runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reval_core.comparison.sections import style_of
from reval_core.comparison.sides import Side
from reval_core.report.page import Html, section, tag


def settings(sides: Sequence[Side]) -> Html:
    """Render a table of the settings that are not the same in all runs."""
    values = [dict(_leaves(side.source.settings)) for side in sides]
    names = dict.fromkeys(name for one in values for name in one)
    differing = [name for name in names if any(one.get(name) != values[0].get(name) for one in values)]
    title = "Settings that differ"
    if not differing:
        return section(title, "None: all runs have the same settings.")
    head = [
        tag("th", "setting"),
        *(tag("th", tag("b", side.name, class_=style_of(place))) for place, side in enumerate(sides)),
    ]
    rows = (
        tag("tr", tag("td", tag("code", name)), *(tag("td", tag("code", _shown(one, name))) for one in values))
        for name in differing
    )
    lead = "Different settings for sampling or judging responses change accuracies by themselves."
    return section(title, lead, tag("div", tag("table", tag("tr", *head), *rows), class_="scrolled"))


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
