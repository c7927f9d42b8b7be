"""The commands that need no run: `reval problems` looks at problem sets, `reval verify` judges responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flows.options import AS_JSON

_SET = click.option("--set", "set_name", metavar="NAME", help="The registered set that FILE holds.")
_COLUMN = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=NAME",
    help="What the file calls problem, answer, prompt_id or options, such as answer=solution.",
)


@click.group()
def problems() -> None:
    """Look at problem sets: which are here, and what is odd about one."""


@problems.command("list")
@AS_JSON
def list_problems(as_json: bool) -> None:
    """List the registered problem sets, and where they were found."""
    from flows.problems import list_sets

    list_sets(as_json)


@problems.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@_SET
@_COLUMN
@click.option(
    "--against",
    multiple=True,
    metavar="NAME_OR_FILE",
    help="A test set to compare with; all registered ones that are found if not given.",
)
@AS_JSON
def check_problems(
    file: Path, set_name: str | None, columns: tuple[str, ...], against: tuple[str, ...], as_json: bool
) -> None:
    """Count what FILE holds and what is odd about it.

    Also lists what stands in test sets too. Ends with 1 if rows must be mended or left out before training on it.
    """
    from flows.problems import check_file

    check_file(file, set_name, columns, against, as_json)


@problems.command("audit")
@click.argument("file", type=click.Path(path_type=Path))
@_SET
@_COLUMN
@click.option(
    "--mode",
    type=click.Choice(["strict", "lenient"]),
    default="strict",
    show_default=True,
    help="How forgiving: as training pays, or as one grades responses of others.",
)
@click.option("--sample", type=click.IntRange(min=1), help="Audit only so many problems, chosen by the seed.")
@click.option("--seed", default=0, show_default=True, help="What mutants and the sample are drawn by.")
@click.option("--workers", type=click.IntRange(min=1), help="Comparisons at a time; the cores if not given.")
@AS_JSON
def audit_problems(
    file: Path,
    set_name: str | None,
    columns: tuple[str, ...],
    mode: Any,
    sample: int | None,
    seed: int,
    workers: int | None,
    as_json: bool,
) -> None:
    """Ask the verifier about each gold in FILE.

    FILE is a file of problems or the name of a registered set. The gold and rewritten forms of it must be paid,
    wrong answers made from it must not. Suspicious golds are listed with their lines. It ends with 0 whatever was
    found.
    """
    from flows.auditing import audit_file

    audit_file(file, set_name, columns, mode, sample, seed, workers, as_json)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--mode",
    type=click.Choice(["strict", "lenient"]),
    default="lenient",
    show_default=True,
    help="How forgiving: as training pays, or as one grades responses of others.",
)
@click.option(
    "--gold-mode",
    type=click.Choice(["all", "any", "choice"]),
    default="all",
    show_default=True,
    help="What a gold asks for, in rows that do not say: all it lists, any of it, or a letter.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Comparisons at a time; the cores if not given.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Seconds of processor time for a comparison.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=NAME",
    help="What the file calls gold, response, gold_mode, truncated or expected, such as response=completion.",
)
@AS_JSON
def verify(
    file: Path,
    mode: Any,
    gold_mode: Any,
    workers: int | None,
    timeout: float,
    columns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Judge the responses in FILE.

    FILE is JSONL, JSON, CSV, Parquet or Arrow with gold and response on each row. With --json, one object a row, in
    its order.
    """
    from flows.verifying import verify_file

    verify_file(file, columns, mode, gold_mode, workers, timeout, as_json)
