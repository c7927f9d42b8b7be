"""Standard output and error that take everything: a full disk, a closed pipe and ASCII stop no command."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class Stream(io.RawIOBase):
    """A file descriptor that is written to until it fails; what comes after is dropped, and the error is kept."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all of `content`, or drop it."""
        rest = memoryview(content).cast("B")
        size = len(rest)
        while rest and self.error is None:
            try:
                rest = rest[os.write(self._number, rest) :]
            except BlockingIOError:  # a pipe that somebody else has set to not wait
                _wait_for(self._number)
            except OSError as error:
                self.error = error
        return size

    def writable(self) -> bool:
        """Yes, always."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._number

    def isatty(self) -> bool:
        """Whether a terminal reads it."""
        return os.isatty(self._number)


def guard() -> None:
    """Put such streams in place of this process's own, and something harmless where a descriptor is closed.

    A file that is opened later would otherwise get the number of the closed one, and be printed into.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is sys.__stdout__:  # else somebody else catches what is printed
        sys.stdout = _guarded(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(2, sys.stderr)


def output_error() -> OSError | None:
    """What standard output failed with, if it did. Nobody reads what is printed then."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, Stream) else None


def exit_code(code: int) -> int:
    """The code to end with: 1 where output was asked for and is lost. Whoever closes a pipe has had enough."""
    error = output_error()
    if code == 0 and error is not None and error.errno != errno.EPIPE:
        print(f"reval: standard output: {error.strerror}", file=sys.stderr, flush=True)
        return 1
    return code


def _guarded(number: int, before: Any) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    buffered = io.BufferedWriter(Stream(number))
    return io.TextIOWrapper(buffered, encoding, errors="backslashreplace", line_buffering=True)


def _wait_for(number: int) -> None:
    import select

    select.select([], [number], [])
