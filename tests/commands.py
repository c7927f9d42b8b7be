"""The command `reval`, executed in the process of the test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reval.flows.cli import main


class Answer(NamedTuple):
    """The exit code of a command, and the text of each stream."""

    code: int
    out: str
    err: str


Reval = Callable[..., Answer]


def command(
    streams: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *before: str
) -> Callable[..., Answer]:
    """A function that executes `reval *before *arguments` and returns its answer."""

    def execute(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["reval", *before, *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return Answer(code or 0, *streams.readouterr())

    return execute
