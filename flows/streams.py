"""Standard output and error that never fail: a full disk, a closed pipe or an ASCII locale stops no command."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class Stream(io.RawIOBase):
    """A file descriptor that is written to until it fails; later output is dropped, and the error is kept."""

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
            except BlockingIOError:  # another process made the pipe non-blocking
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
    """Replace this process's standard streams, and open /dev/null for closed descriptors.

    A file opened later would otherwise get the number of the closed descriptor and receive the output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is sys.__stdout__:  # otherwise the output is already captured
        sys.stdout = _guarded(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(2, sys.stderr)


def output_error() -> OSError | None:
    """The error that standard output failed with, if any. Further output is lost."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, Stream) else None


def exit_code(code: int) -> int:
    """The exit code: 1 if output was lost, except when the reader closed the pipe."""
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
