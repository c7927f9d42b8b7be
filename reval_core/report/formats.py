"""How numbers, shares, durations and queries are written on pages and in the terminal."""

from __future__ import annotations

import math
from textwrap import dedent
from typing import Any

MINUS = "−"


def number(value: Any) -> str:
    """Format a number with three significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", MINUS)
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("-", MINUS)
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}".replace("-", MINUS)


def percent(share: Any) -> str:
    """Format a share as a percentage."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f}%".replace("-", MINUS)


def points(share: float) -> str:
    """Format a difference of shares in signed percentage points."""
    return f"{100 * share:+.1f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """Format seconds in the two largest units."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def statement(template: str, **values: str | int) -> str:
    """Return a query as executed and shown: its template without indentation, with `values` filled in."""
    return dedent(template).strip().format(**values)
