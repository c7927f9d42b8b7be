"""Compares runs with a baseline on shared problems, with paired intervals, on one page.

Only published tables are read, so runs can be compared while they train.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reval_core.atomic_files import publish_file
from reval_core.comparison.by_problem import problem_by_problem
from reval_core.comparison.pairs import Pair
from reval_core.comparison.sections import curves, differences, in_words, side_by_side
from reval_core.comparison.settings import settings
from reval_core.comparison.sides import Side
from reval_core.comparison.style import STYLE
from reval_core.report.page import Html, page, tag


def write_comparison(path: Path, sides: Sequence[Side], pairs: Sequence[Pair]) -> None:
    """Write the page of a comparison.

    Args:
        path: Where the page is written.
        sides: The baseline, then the runs.
        pairs: Each run with the baseline, in the same order.
    """
    main = tag(
        "main",
        _head(sides, pairs),
        differences(pairs),
        side_by_side(pairs),
        curves(sides),
        *(problem_by_problem(pair, place) for place, pair in enumerate(pairs, start=1)),
        settings(sides),
        _footer(),
    )
    text = page(f"{_title(sides)} · reval", main, STYLE)
    publish_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _title(sides: Sequence[Side]) -> str:
    baseline, *runs = [side.name for side in sides]
    return f"{' and '.join(runs) if len(runs) < 3 else f'{len(runs)} runs'} compared with {baseline}"


def _head(sides: Sequence[Side], pairs: Sequence[Pair]) -> Html:
    return tag(
        "header",
        tag("h1", _title(sides)),
        *(tag("p", in_words(pair), class_="summary") for pair in pairs),
    )


def _footer() -> Html:
    return tag(
        "footer",
        "All values come from the runs' published tables. The SQL shown is executed on each run separately: ",
        tag("code", 'reval sql RUN "SELECT …"'),
        "; pairing, resampling and averaging over shared problems use its rows (docs/metrics.md).",
    )
