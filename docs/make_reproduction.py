"""Put a reproduction's results into docs/reproduction.md: `python docs/make_reproduction.py [reproduction]`."""

from __future__ import annotations

import sys
from pathlib import Path

TARGET = Path(__file__).with_name("reproduction.md")
HEADING = "## Results\n\n"


def main(out: Path) -> None:
    """Replace what stands below the heading by the results.md of a reproduction."""
    introduction, heading, _ = TARGET.read_text(encoding="utf-8").partition(HEADING)
    assert heading, f"{TARGET} has no line {HEADING.strip()!r}"
    TARGET.write_text(introduction + heading + (out / "results.md").read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "reproduction"))
