"""The exceptions that reval raises deliberately."""

from __future__ import annotations

from collections.abc import Iterator


class RevalError(Exception):
    """Base class: an error that stops a run, with a message that says what to do."""


class InputError(RevalError):
    """Invalid user input, rejected before any work begins.

    The message is one line that names the location (file, line, field) and the remedy.
    """


class RunStopped(RevalError):
    """A run stopped itself, for example because too many verdicts timed out."""


class CorruptData(RevalError):
    """A file of a run is missing or differs from what its manifest recorded."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the errors that led to it, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if the message is empty."""
    return str(error).strip().split("\n")[0] or type(error).__name__
