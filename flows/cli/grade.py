"""`reval grade`."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reval.flows.cli.options import AS_JSON, WORKERS, column, mode
from reval.flows.streams import output_error
from reval.flows.terminal import print_json_line, print_table, say

if TYPE_CHECKING:
    from reval_core.answers.extraction import Mode
    from reval_core.problems.claim_files import ClaimRow
    from reval_core.verification import GoldMode, Judgement

_SHOWN_DISAGREEMENTS = 10
_SHOWN_CHARACTERS = 60


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
    from reval_core.problems.claim_files import CLAIM_FIELDS, read_claims
    from reval_core.rows import column_options
    from reval_core.verification import Verifier

    rows = read_claims(file, column_options(columns, CLAIM_FIELDS), gold_mode)
    verifier = Verifier(workers=workers or os.cpu_count() or 1, timeout_seconds=timeout, mode=mode)
    with verifier, closing(verifier.judge_each([row.claim for row in rows])) as judgements:
        if as_json:
            _print_lines(judgements)
        else:
            _show(rows, list(judgements))


def _print_lines(judgements: Iterator[Judgement]) -> None:
    """Print one JSON object per row, as soon as it and those before it are judged; stop if output fails."""
    for judgement in judgements:
        print_json_line(
            {
                "verdict": judgement.verdict,
                "extracted": judgement.extracted,
                "milliseconds": round(judgement.milliseconds, 3),
            }
        )
        if output_error() is not None:
            return


def _show(rows: Sequence[ClaimRow], judgements: Sequence[Judgement]) -> None:
    times: dict[str, list[float]] = {}
    for judgement in judgements:
        times.setdefault(judgement.verdict, []).append(judgement.milliseconds)
    lines = []
    for verdict, found in sorted(times.items(), key=lambda item: -len(item[1])):
        late = statistics.quantiles(found, n=20, method="inclusive")[-1] if len(found) > 1 else found[0]
        share, median = len(found) / len(rows), statistics.median(found)
        lines.append((verdict, f"{len(found):,}", f"{share:.1%}", f"{median:.1f}", f"{late:.1f}"))
    print_table(["verdict", "count", "share", "median ms", "95% ms"], lines)
    _show_agreement(rows, judgements)


def _show_agreement(rows: Sequence[ClaimRow], judgements: Sequence[Judgement]) -> None:
    known = [(row, one) for row, one in zip(rows, judgements, strict=True) if row.expected is not None]
    if not known:
        return
    others = [(row, one) for row, one in known if (one.verdict == "correct") != row.expected]
    agreeing = len(known) - len(others)
    say(f"{agreeing:,} of {len(known):,} agree with the expected verdicts ({agreeing / len(known):.1%})")
    for row, judgement in others[:_SHOWN_DISAGREEMENTS]:
        say(
            f"{row.place}: {judgement.verdict}, expected {'correct' if row.expected else 'not correct'}; "
            f"gold {_short(row.claim.gold)}, extracted {_short(judgement.extracted)}"
        )
    if len(others) > _SHOWN_DISAGREEMENTS:
        say(f"and {len(others) - _SHOWN_DISAGREEMENTS:,} more")


def _short(text: str | None) -> str:
    """The end of a text on one line, in ASCII."""
    if text is None:
        return "nothing"
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else "…" + text[-_SHOWN_CHARACTERS:])
