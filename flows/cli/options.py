"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
OVERRIDE = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, such as learner.lr=1e-4."
)
RUN = click.argument("run", type=click.Path(path_type=Path))
WORKERS = click.option(
    "--workers", type=click.IntRange(min=1), help="Number of parallel comparisons; default: the number of cores."
)


def column(fields: str, example: str) -> Callable[[Any], Any]:
    """The option `--column` of commands that read a file of rows, with these fields and an example of its value."""
    return click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="FIELD=NAME",
        help=f"The file's name for {fields}, such as {example}.",
    )


def mode(default: str) -> Callable[[Any], Any]:
    """The option `--mode` of commands that judge responses, with this default."""
    return click.option(
        "--mode",
        type=click.Choice(["strict", "lenient"]),
        default=default,
        show_default=True,
        help="Grading rules: strict as in training, lenient for responses of other models.",
    )
