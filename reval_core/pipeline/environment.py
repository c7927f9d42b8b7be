"""The environment that results depend on: recorded when a run starts, checked when it resumes."""

from __future__ import annotations

import logging
import os
import platform
from typing import Any

import torch

from reval_core import launch
from reval_core.atomic_files import publish_sealed, read_sealed
from reval_core.config import MOST_THREADS, Config, Rollouts
from reval_core.engines.choice import choose
from reval_core.errors import CorruptData, InputError
from reval_core.learning.deterministic import announce_deterministic
from reval_core.learning.learner import LEARNER_VERSION
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMA_VERSION
from reval_core.verification import VERIFIER_VERSION

log = logging.getLogger("reval")

_DECISIVE = ("torch", "transformers", "verifier", "learner", "schema", "device")
"""What must not change within a run: other versions give other verdicts or weights, and inconsistent records."""


def fix_machine(directory: RunDirectory, config: Config) -> dict[str, Any]:
    """Record this machine if the run is new, else check it. Sets torch's number of threads to the recorded one.

    Returns:
        The recorded description of the machine.

    Raises:
        InputError: If the run cannot resume on this machine; the message names what differs.
    """
    if config.learner.deterministic:
        announce_deterministic()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    recorded = check_machine(directory, config)
    if recorded is None:
        recorded = _describe(config)
        publish_sealed(directory.machine, recorded)
    elif _read(directory) is None:
        log.warning("%s: is missing; it is restored from the warm start's manifest", directory.machine.name)
        publish_sealed(directory.machine, recorded)
    torch.set_num_threads(recorded["threads"])
    if recorded["processes"] != launch.count():
        log.warning(
            "%s: was started with %s processes and now has %s: gradients are summed in another order, so the "
            "results equal those of an undisturbed run up to rounding, and not to the bit",
            directory.path,
            recorded["processes"],
            launch.count(),
        )
    return recorded


def check_machine(directory: RunDirectory, config: Config) -> dict[str, Any] | None:
    """Check that the run can resume on this machine. Changes nothing on disk.

    Returns:
        The description of the machine that was recorded when the run started; None for a new run.

    Raises:
        InputError: If the run cannot resume on this machine; the message names what differs.
    """
    recorded = _read(directory) or _of_warm_start(directory)
    if recorded is None:
        return None
    here = _describe(config)
    other = [
        f"{name} {recorded.get(name)}, now {here[name]}" for name in _DECISIVE if recorded.get(name) != here[name]
    ]
    if other:
        raise InputError(
            f"{directory.path}: was made with {'; '.join(other)}; resume with the same versions (learner, verifier "
            "and schema are versions of reval), or start a new run"
        )
    threads = recorded["threads"]
    if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise InputError(
            f"{directory.machine}: threads: must be 1 to {MOST_THREADS}, not {threads!r}; start a new run"
        )
    return recorded


def _read(directory: RunDirectory) -> dict[str, Any] | None:
    """The record in machine.json; None if the file is missing or was changed."""
    try:
        return read_sealed(directory.machine)
    except CorruptData:
        return None


def _of_warm_start(directory: RunDirectory) -> dict[str, Any] | None:
    """The copy of the record in the warm start's manifest, in case machine.json is lost."""
    try:
        manifest = directory.manifest("warm_start", 0)
    except CorruptData:
        return None
    return None if manifest is None else manifest.info["machine"]


def _describe(config: Config) -> dict[str, Any]:
    import transformers

    engine = choose(config.model, config.engine).kind if isinstance(config.rollouts, Rollouts) else None
    return {
        "engine": engine,
        "threads": torch.get_num_threads(),
        "processes": launch.count(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "verifier": VERIFIER_VERSION,
        "learner": LEARNER_VERSION,
        "schema": SCHEMA_VERSION,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }
