"""Insert results into docs/reproduction.md: `python docs/make_reproduction.py [reproduction]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("reproduction.md")
HEADING = "## Results\n\n"


def main(out: Path) -> None:
    """Insert the results.md of a reproduction below the heading. Figures that it lacks remain unchanged."""
    introduction, heading, recorded = TARGET.read_text(encoding="utf-8").partition(HEADING)
    assert heading, f"{TARGET} has no heading {HEADING.strip()!r}"
    made = (out / "results.md").read_text(encoding="utf-8")
    TARGET.write_text(introduction + heading + merged(recorded, made), encoding="utf-8")


def merged(recorded: str, made: str) -> str:
    """Return the results of `recorded`, updated with the table rows and sections of `made`."""
    (head, rows, sections), (_, new_rows, new_sections) = _parts(recorded), _parts(made)
    table = "\n".join([head, *(rows | new_rows).values()])
    return "\n\n".join([table, *(sections | new_sections).values()]) + "\n"


def _parts(results: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return the head of the table, its rows by figure, and the sections by figure."""
    table, *sections = results.strip().split("\n\n### ")
    head, *rows = re.split(r"\n(?=\| \[)", table)
    return (
        head,
        {row.partition("]")[0]: row for row in rows},
        {section.partition("\n")[0]: f"### {section}" for section in sections},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "reproduction"))
