"""`reval verify`: judge a file of responses."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from reval_core.claim_files import CLAIM_FIELDS, ClaimRow, read_claims
from reval_core.extraction import Mode
from reval_core.rows import column_options
from reval_core.verification import GoldMode, Judgement, Verifier

_SHOWN_DISAGREEMENTS = 10
_SHOWN_CHARACTERS = 60


def verify_file(
    file: Path,
    columns: Sequence[str],
    mode: Mode,
    gold_mode: GoldMode,
    workers: int | None,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Judge each row of a file and print its verdict, or a count for each verdict.

    Raises InputError, before anything is judged, for the first row that cannot be used.
    """
    rows = read_claims(file, column_options(columns, CLAIM_FIELDS), gold_mode)
    verifier = Verifier(workers=workers or os.cpu_count() or 1, timeout_seconds=timeout_seconds, mode=mode)
    with verifier, closing(verifier.judge_each([row.claim for row in rows])) as judgements:
        if as_json:
            _print_lines(judgements)
        else:
            _show(rows, list(judgements))


def _print_lines(judgements: Iterator[Judgement]) -> None:
    """One JSON object a row, as soon as it and those before it are judged."""
    try:
        for judgement in judgements:
            line = {
                "verdict": judgement.verdict,
                "extracted": judgement.extracted,
                "milliseconds": round(judgement.milliseconds, 3),
            }
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has had enough, which is no error; nor should the flush at exit be one.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(rows: Sequence[ClaimRow], judgements: Sequence[Judgement]) -> None:
    times: dict[str, list[float]] = {}
    for judgement in judgements:
        times.setdefault(judgement.verdict, []).append(judgement.milliseconds)
    table = Table("verdict", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("count", "share", "median ms", "95% ms"):
        table.add_column(heading, justify="right")
    for verdict, found in sorted(times.items(), key=lambda item: -len(item[1])):
        late = statistics.quantiles(found, n=20, method="inclusive")[-1] if len(found) > 1 else found[0]
        table.add_row(
            verdict,
            f"{len(found):,}",
            f"{len(found) / len(rows):.1%}",
            f"{statistics.median(found):.1f}",
            f"{late:.1f}",
        )
    Console().print(table)
    _show_agreement(rows, judgements)


def _show_agreement(rows: Sequence[ClaimRow], judgements: Sequence[Judgement]) -> None:
    known = [(row, one) for row, one in zip(rows, judgements, strict=True) if row.expected is not None]
    if not known:
        return
    others = [(row, one) for row, one in known if (one.verdict == "correct") != row.expected]
    agreeing = len(known) - len(others)
    click.echo(f"{agreeing:,} of {len(known):,} agree with what the file expects ({agreeing / len(known):.1%})")
    for row, judgement in others[:_SHOWN_DISAGREEMENTS]:
        click.echo(
            f"{row.place}: {judgement.verdict}, expected {'right' if row.expected else 'not right'}; "
            f"gold {_short(row.claim.gold)}, extracted {_short(judgement.extracted)}"
        )
    if len(others) > _SHOWN_DISAGREEMENTS:
        click.echo(f"and {len(others) - _SHOWN_DISAGREEMENTS:,} more")


def _short(text: str | None) -> str:
    """The end of a text on one line, without what a terminal would act on."""
    if text is None:
        return "nothing"
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else "…" + text[-_SHOWN_CHARACTERS:])
