"""The errors that reval raises on purpose."""

from __future__ import annotations


class RevalError(Exception):
    """Something that stops a run, with a message that says what to do."""


class InputError(RevalError):
    """What the user gave cannot be used: refused before any work begins.

    The message is one line that names the place (file, line, field) and the remedy.
    """


class RunStopped(RevalError):
    """A run stopped itself, for example because too many verdicts timed out."""


class CorruptData(RevalError):
    """A file of a run is missing or does not have the bytes that its manifest recorded."""


def first_line(error: BaseException) -> str:
    """What an error says, without the lines after the first; its kind where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
