"""Put a reproduction's results into docs/reproduction.md: `python docs/make_reproduction.py [reproduction]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("reproduction.md")
HEADING = "## Results\n\n"


def main(out: Path) -> None:
    """Put the figures of a reproduction's results.md below the heading. Figures that it lacks stay as they are."""
    introduction, heading, recorded = TARGET.read_text(encoding="utf-8").partition(HEADING)
    assert heading, f"{TARGET} has no line {HEADING.strip()!r}"
    made = (out / "results.md").read_text(encoding="utf-8")
    TARGET.write_text(introduction + heading + merged(recorded, made), encoding="utf-8")


def merged(recorded: str, made: str) -> str:
    """The results of `recorded` with those of `made` in their place: rows of the first table, and sections."""
    (head, rows, sections), (_, new_rows, new_sections) = _parts(recorded), _parts(made)
    table = "\n".join([head, *(rows | new_rows).values()])
    return "\n\n".join([table, *(sections | new_sections).values()]) + "\n"


def _parts(results: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """The head of the table, its rows by figure, and the sections by figure."""
    table, *sections = results.strip().split("\n\n### ")
    head, *rows = re.split(r"\n(?=\| \[)", table)
    return (
        head,
        {row.partition("]")[0]: row for row in rows},
        {section.partition("\n")[0]: f"### {section}" for section in sections},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "reproduction"))
