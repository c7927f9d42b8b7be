"""The rank of this process and the number of processes, as set by `accelerate launch` or torchrun."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

_OF_LAUNCHERS = re.compile(
    r"TORCHELASTIC_\w+|(LOCAL|GROUP|ROLE)_(RANK|WORLD_SIZE|NAME)|RANK|WORLD_SIZE|MASTER_(ADDR|PORT)"
)
"""The environment variables that describe a process group."""


def count() -> int:
    """The number of processes that were launched, on all hosts."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that runs the pipeline."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of its host, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_count() -> int:
    """The number of processes that were launched on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(count())))


@contextmanager
def launcher_hidden() -> Iterator[None]:
    """Context manager that hides the launcher's process group from processes that are started meanwhile.

    With TORCHELASTIC_USE_AGENT_STORE a group of their own that meets over TCP would wait at the launcher's store.
    """
    kept = _group_variables()
    _replace_group_variables({})
    try:
        yield
    finally:
        _replace_group_variables(kept)


def _group_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _OF_LAUNCHERS.fullmatch(name)}


def _replace_group_variables(values: dict[str, str]) -> None:
    for name in _group_variables():
        del os.environ[name]
    os.environ.update(values)
