"""Finds and ends processes that a user's function has left running, by their parent ids in ``/proc``.

A subreaper becomes the parent of every descendant whose own parent has ended, even of one in a session of its own,
so that none escapes. This exists only on Linux; elsewhere these functions do nothing and find nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Collection

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# A limit for processes of other users, or that start others faster than they are found.
_LIMIT_SECONDS = 1.0
_POLL_SECONDS = 0.001


def adopt_orphans() -> None:
    """Make this process the parent of all descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have this process killed when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def end_descendants(spared: Collection[int] = ()) -> None:
    """Kill and reap all descendants of this process, except the children `spared` and their descendants."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while (found := descendants(spared)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                os.kill(process, signal.SIGKILL)
        for process in found:
            with contextlib.suppress(ChildProcessError):  # not a child until its parent has ended
                os.waitpid(process, os.WNOHANG)
        time.sleep(_POLL_SECONDS)


def descendants(spared: Collection[int] = ()) -> list[int]:
    """The ids of all descendants of this process, except the children `spared` and their descendants."""
    return below(os.getpid(), spared) if _has_children() else []


def below(process: int, spared: Collection[int] = ()) -> list[int]:
    """The ids of all descendants of `process`, except its children `spared` and their descendants."""
    children = defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                children[int(file.read().rpartition(b")")[2].split()[1])].append(int(name))
    found: list[int] = []
    parents = [process]
    while parents:
        next_ones = [child for child in children[parents.pop()] if child not in spared]
        found += next_ones
        parents += next_ones
    return found


def _has_children() -> bool:
    """Whether this process has any children, determined without scanning all processes."""
    if sys.platform != "linux":
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
