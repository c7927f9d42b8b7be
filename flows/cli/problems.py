"""`reval problems`: list, check and audit problem sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from reval.flows.cli.options import AS_JSON, WORKERS, column, mode

if TYPE_CHECKING:
    from reval_core.answers.extraction import Mode

_SET = click.option("--set", "set_name", metavar="NAME", help="The registered set that FILE contains.")
_COLUMN = column("problem, answer, prompt_id or options", "answer=solution")


@click.group()
def problems() -> None:
    """List, check and audit problem sets."""


@problems.command("list")
@AS_JSON
def list_problems(as_json: bool) -> None:
    """List the registered problem sets and where they were found."""
    from reval.flows.problems import list_sets

    list_sets(as_json)


@problems.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@_SET
@_COLUMN
@click.option(
    "--against",
    multiple=True,
    metavar="NAME_OR_FILE",
    help="A test set to compare with; default: all registered ones that are found.",
)
@AS_JSON
def check_problems(
    file: Path, set_name: str | None, columns: tuple[str, ...], against: tuple[str, ...], as_json: bool
) -> None:
    """Report rows of FILE that need attention.

    Also lists its overlap with test sets. Exits with 1 if rows must be fixed or left out before training on it.
    """
    from reval.flows.problems import check_file

    check_file(file, set_name, columns, against, as_json)


@problems.command("audit")
@click.argument("file", type=click.Path(path_type=Path))
@_SET
@_COLUMN
@mode("strict")
@click.option("--sample", type=click.IntRange(min=1), help="Audit only this many problems, chosen by the seed.")
@click.option("--seed", default=0, show_default=True, help="The seed of mutants and of the sample.")
@WORKERS
@AS_JSON
def audit_problems(
    file: Path,
    set_name: str | None,
    columns: tuple[str, ...],
    mode: Mode,
    sample: int | None,
    seed: int,
    workers: int | None,
    as_json: bool,
) -> None:
    """Test the verifier on each gold in FILE.

    FILE is a file of problems or the name of a registered set. The gold and its rewritten forms must be accepted,
    wrong answers derived from it must not. Suspicious golds are listed with their lines. The exit code is 0
    whatever is found.
    """
    from reval.flows.auditing import audit_file

    audit_file(file, set_name, columns, mode, sample, seed, workers, as_json)
