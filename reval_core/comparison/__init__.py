"""Runs against a baseline: the same problems, paired intervals, and one page that shows where they differ.

It is made of published facts alone, so runs can be compared while they train.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reval_core.atomic_files import publish_file
from reval_core.comparison.by_problem import problem_by_problem
from reval_core.comparison.pairs import Pair
from reval_core.comparison.sections import curves, differences, figures, in_words
from reval_core.comparison.settings import settings
from reval_core.comparison.sides import Side
from reval_core.comparison.style import STYLE
from reval_core.report.page import Html, page, tag


def write_comparison(path: Path, sides: Sequence[Side], pairs: Sequence[Pair]) -> None:
    """Publish the page of a comparison. `sides` begin with the baseline, `pairs` follow the others' order."""
    main = tag(
        "main",
        _head(sides, pairs),
        differences(pairs),
        figures(pairs),
        curves(sides),
        *(problem_by_problem(pair, place) for place, pair in enumerate(pairs, start=1)),
        settings(sides),
        _footer(),
    )
    text = page(f"{_title(sides)} · reval", main, STYLE)
    publish_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _title(sides: Sequence[Side]) -> str:
    baseline, *runs = [side.name for side in sides]
    return f"{' and '.join(runs) if len(runs) < 3 else f'{len(runs)} runs'} against {baseline}"


def _head(sides: Sequence[Side], pairs: Sequence[Pair]) -> Html:
    return tag(
        "header",
        tag("h1", _title(sides)),
        *(tag("p", in_words(pair), class_="summary") for pair in pairs),
    )


def _footer() -> Html:
    return tag(
        "footer",
        "Every figure is made of the runs' published facts. The SQL shown is asked of each run by itself: ",
        tag("code", 'reval sql RUN "SELECT …"'),
        "; what is paired, redrawn or averaged over shared problems is made of its rows (docs/metrics.md).",
    )
