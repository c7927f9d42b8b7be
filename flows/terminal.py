"""Everything that commands print: lines, tables and progress bars for people, JSON and CSV for programs.

Output may contain untrusted text, so nothing is interpreted as markup, and control characters are escaped. Without
a terminal there are no bars and no colours, with NO_COLOR no colours. Rich is imported where it is used, because
`reval --help` does not need it.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from reval_core.output.control_characters import visible, visible_lines
from reval_core.output.json_text import json_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_NARROWEST = 16
"""Text is folded to columns of at least this width; a table that needs more is printed as one block per row."""

_GUTTER = "  │ "


def say(text: object = "", err: bool = False) -> None:
    """Print lines of text with control characters escaped."""
    _write(visible_lines(str(text)) + "\n", sys.stderr if err else sys.stdout)


def lines_beside_json(as_json: bool) -> AbstractContextManager[object]:
    """With `as_json`, what is printed meanwhile goes to standard error: standard output is for the JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def notice(text: object) -> None:
    """Print a line on standard error that names the command."""
    say(f"reval: {text}", err=True)


class _Visible(logging.Formatter):
    """Escapes control characters: messages contain file names and texts of other libraries."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, safe for a terminal."""
        return visible_lines(super().format(record))


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Show reval's own warnings on the terminal; Prefect's log level would hide them."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Visible("reval: %(message)s"))
    logger = logging.getLogger("reval")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


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

    place = console(soft_wrap=False)
    available = min(place.width, width or place.width)
    heads, cells = [styled(name) for name in names], [[_cell(value) for value in row] for row in rows]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    needed = 2  # the edges
    for column, (head, numbers) in enumerate(zip(heads, right, strict=True)):
        widths = [place.measure(cell).maximum for cell in (head, *(row[column] for row in cells))]
        least = max([min(max(widths), _NARROWEST), *(widths[1:] if numbers else [])])
        table.add_column(head, justify="right" if numbers else "left", overflow=overflow, min_width=least)
        needed += least + (3 if column else 0)
    for row in cells:
        table.add_row(*row)
    if needed <= available or not cells:
        _print_lines(table, available)
    else:
        _print_records(heads, cells, available)


def _print_records(names: Sequence[Text], rows: Sequence[Sequence[Text]], width: int) -> None:
    """Print a block per row with a line per column, for tables that are wider than the terminal."""
    from rich.table import Table

    for number, row in enumerate(rows, start=1):
        console().print(styled((f"row {number}", "bold")))
        grid = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
        grid.add_column(overflow="fold")
        grid.add_column(overflow="fold")
        for name, value in zip(names, row, strict=True):
            grid.add_row(name, value)
        _print_lines(grid, width)


def _print_lines(table: Table, width: int) -> None:
    """Print a table without the spaces that rich adds at the ends of lines."""
    from rich.text import Text

    place = console()
    for line in place.render_lines(table, place.options.update(width=width), pad=False):
        text = Text.assemble(*((part.text, part.style or "") for part in line))
        text.rstrip()
        place.print(text)


def _cell(value: Any) -> Text:
    from rich.text import Text

    if value is None:
        return Text("–")
    if isinstance(value, Text):
        return value
    return Text(f"{value:.4g}" if isinstance(value, float) else visible_lines(str(value)))


def print_pairs(title: str, values: dict[str, str]) -> None:
    """Print names and their values, one per line."""
    width = max(map(len, values))
    console().print(styled((title, "bold")))
    for name, value in values.items():
        say(f"  {name:<{width}}  {value}")


def print_quoted(text: str, marked: Sequence[str], most: int) -> int:
    """Print a text behind a line in the margin and return how many lines were left out.

    Args:
        text: Any text.
        marked: Words that are highlighted.
        most: The maximum number of lines.
    """
    from rich.text import Text

    place = console()
    quoted = Text(visible_lines(text))
    quoted.highlight_words([visible(one) for one in marked], "bold cyan")
    lines = quoted.wrap(place, max(20, place.width - len(_GUTTER) - 1), overflow="fold")
    for line in lines[:most]:
        place.print(styled((_GUTTER, "dim")) + line)
    return max(0, len(lines) - most)


class Bar:
    """A progress bar on a terminal. Elsewhere there is none, and lines are plain."""

    def __init__(self, title: str = "", unit: str = "", stderr: bool = False, shown: bool = False) -> None:
        """`unit` names what is counted; a bar that is not `shown` yet appears with the first update."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console(stderr)
        self._progress = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            *([TextColumn(unit, markup=False)] if unit else []),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(visible(title), visible=shown, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def begin(self, title: str, total: int | None = None) -> None:
        """Start again with this title; hidden unless the total is known."""
        self._progress.reset(self._task, description=visible(title), total=total, visible=total is not None)

    def update(self, done: int, total: int, shown: bool = True) -> None:
        """Show how much is done."""
        self._progress.update(self._task, completed=done, total=total, visible=shown)

    def step(self) -> None:
        """Count one more."""
        self._progress.advance(self._task)

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print a line above the bar; each part is a text or a pair of text and style."""
        self._console.print(styled(*parts))

    def hide(self) -> None:
        """Hide the bar until the next update."""
        self._progress.update(self._task, visible=False)


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
