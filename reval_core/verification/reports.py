"""The reports of workers: one line of JSON per task.

A process that runs a user's function may write anything, so every line is validated.
"""

from __future__ import annotations

import json
from typing import Any

READY = b"ready\n"
LONGEST_REPORT = 1 << 16


def write_report(report: dict[str, Any]) -> bytes:
    """Serialize a report as a line."""
    return json.dumps(report).encode() + b"\n"


def read_report(line: bytes, graded: bool) -> dict[str, Any] | None:
    """Parse and validate a report.

    Args:
        line: The line that a worker has sent.
        graded: Whether the worker runs a user's function.

    Returns:
        The report, or None if the line is invalid. A report has a ``verdict`` (``correct`` or ``wrong``). That of
        a user's function has an ``outcome``, a number from 0 to 1 or None, or the verdict ``error`` with a
        ``message``.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        report = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(report, dict):
        return None
    if graded:
        return report if _is_of_function(report) else None
    return report if report in ({"verdict": "correct"}, {"verdict": "wrong"}) else None


def _is_of_function(report: dict[str, Any]) -> bool:
    if set(report) == {"verdict", "message"}:
        return report["verdict"] == "error" and isinstance(report["message"], str)
    return set(report) == {"outcome"} and _is_outcome(report["outcome"])


def _is_outcome(value: Any) -> bool:
    return value is None or (isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1)
