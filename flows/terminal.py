"""Everything that commands print: lines, tables and progress for people, JSON and CSV for programs.

Output may contain untrusted text, so nothing is interpreted as markup, and control characters are escaped.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from reval_core.output.control_characters import visible, visible_lines
from reval_core.output.json_text import json_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def say(text: object = "", err: bool = False) -> None:
    """Print lines of text with control characters escaped."""
    _write(visible_lines(str(text)) + "\n", sys.stderr if err else sys.stdout)


def console(stderr: bool = False, soft_wrap: bool = True) -> Console:
    """A rich console that prints text literally: no markup, no emoji, no highlighting."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap, stderr=stderr)


def styled(*parts: str | tuple[str, str]) -> Text:
    """A line of texts, each with or without a rich style."""
    from rich.text import Text

    return Text.assemble(
        *(visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts)
    )


def print_rows(names: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None = None) -> None:
    """Print a table that fits the terminal; columns with numbers are right-aligned."""
    right = [any(isinstance(row[place], int | float) for row in rows) for place in range(len(names))]
    _print_table(names, rows, right, "fold", width)


def print_table(
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    right: Collection[int] | None = None,
    width: int | None = None,
) -> None:
    """Print a table of formatted values; the columns in `right`, or all but the first, are right-aligned."""
    places = range(1, len(names)) if right is None else right
    _print_table(names, rows, [place in places for place in range(len(names))], "ellipsis", width)


def _print_table(
    names: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[bool], overflow: Any, width: int | None
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, numbers in zip(names, right, strict=True):
        table.add_column(styled(name), justify="right" if numbers else "left", overflow=overflow)
    for row in rows:
        table.add_row(*map(_cell, row))
    place = console(soft_wrap=False)
    place.print(table, width=width and min(place.width, width))


def _cell(value: Any) -> Text:
    from rich.text import Text

    if value is None:
        return Text("–")
    return Text(f"{value:.4g}" if isinstance(value, float) else visible_lines(str(value)))


def print_pairs(title: str, values: dict[str, str]) -> None:
    """Print names and their values, one per line."""
    width = max(map(len, values))
    console().print(styled((title, "bold")))
    for name, value in values.items():
        say(f"  {name:<{width}}  {value}")


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    _write(json_text(value, ascii_only=not _takes_unicode()) + "\n", sys.stdout)


def print_json_line(value: Any) -> None:
    """Print JSON on one line and flush."""
    _write(json_text(value, indent=None, ascii_only=not _takes_unicode()) + "\n", sys.stdout)


def _takes_unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


def print_csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print CSV for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    _write(visible_lines(text.getvalue()), sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    stream.write(text)
    stream.flush()


def short(path: Path) -> str:
    """A path relative to the current directory, where it is inside it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
