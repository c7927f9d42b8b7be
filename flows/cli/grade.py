"""`reval grade`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from reval.flows.cli.options import AS_JSON, WORKERS, column, mode

if TYPE_CHECKING:
    from reval_core.answers.extraction import Mode
    from reval_core.verification import GoldMode


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@mode("lenient")
@click.option(
    "--gold-mode",
    type=click.Choice(["all", "any", "choice"]),
    default="all",
    show_default=True,
    help="What a gold requires where the row does not say: all listed answers, any of them, or a letter.",
)
@WORKERS
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="CPU seconds per comparison.",
)
@column("gold, response, gold_mode, truncated or expected", "response=completion")
@AS_JSON
def grade(
    file: Path,
    mode: Mode,
    gold_mode: GoldMode,
    workers: int | None,
    timeout: float,
    columns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Grade the responses in FILE against their golds.

    FILE is JSONL, JSON, CSV, Parquet or Arrow with gold and response in each row. With --json, prints one object
    per row, in order.
    """
    from reval.flows.grading import grade_file

    grade_file(file, columns, mode, gold_mode, workers, timeout, as_json)
