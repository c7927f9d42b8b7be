"""Compares runs with a baseline on shared problems, with paired intervals, on one page.

Only published tables are read, so runs can be compared while they train.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reval_core.comparison.by_problem import problem_by_problem
from reval_core.comparison.pairs import Pair
from reval_core.comparison.sections import curves, differences, in_words, side_by_side
from reval_core.comparison.settings import settings
from reval_core.comparison.sides import Side
from reval_core.report.page import publish_page


def write_comparison(path: Path, sides: Sequence[Side], pairs: Sequence[Pair]) -> None:
    """Write the page of a comparison.

    Args:
        path: Where the page is written.
        sides: The baseline, then the runs.
        pairs: Each run with the baseline, in the same order.
    """
    publish_page(
        path,
        "comparison/templates/comparison.html.j2",
        sides=sides,
        title=_title(sides),
        results=[in_words(pair) for pair in pairs],
        differences=differences(pairs),
        side_by_side=side_by_side(pairs),
        curves=curves(sides),
        problems=[problem_by_problem(pair, place) for place, pair in enumerate(pairs, start=1)],
        settings=settings(sides),
    )


def _title(sides: Sequence[Side]) -> str:
    baseline, *runs = [side.name for side in sides]
    return f"{' and '.join(runs) if len(runs) < 3 else f'{len(runs)} runs'} compared with {baseline}"
