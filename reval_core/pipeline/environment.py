"""What results depend on beside the config: recorded when a run begins, and kept to when it goes on."""

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
"""What may not change while a run lasts: other versions give other verdicts or weights, and facts that disagree."""


def fix_machine(directory: RunDirectory, config: Config) -> dict[str, Any]:
    """Record this machine if the run is new; else take up its number of threads and processes.

    Raises InputError, naming what differs, if the run cannot resume here.
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
        log.warning("%s: is gone; it is made again from the warm start's manifest", directory.machine.name)
        publish_sealed(directory.machine, recorded)
    torch.set_num_threads(recorded["threads"])
    return recorded


def check_machine(directory: RunDirectory, config: Config) -> dict[str, Any] | None:
    """What was recorded of the machine when the run began; None if it is new. Changes nothing on disk.

    Raises InputError, naming what differs, if the run cannot resume here.
    """
    recorded = _read(directory) or _of_warm_start(directory)
    if recorded is None:
        return None
    here = _describe(config)
    if recorded["processes"] != here["processes"]:
        raise InputError(
            f"{directory.path}: this run learns in {recorded['processes']} processes, and now there are "
            f"{here['processes']}; resume with accelerate launch --num_processes {recorded['processes']}"
        )
    other = [
        f"{name} {recorded.get(name)}, now {here[name]}" for name in _DECISIVE if recorded.get(name) != here[name]
    ]
    if other:
        raise InputError(
            f"{directory.path}: was made with {'; '.join(other)}; resume with the versions that made it (learner, "
            "verifier and schema are those of reval), or start a new run"
        )
    threads = recorded["threads"]
    if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise InputError(
            f"{directory.machine}: threads: must be 1 to {MOST_THREADS}, not {threads!r}; start a new run"
        )
    return recorded


def _read(directory: RunDirectory) -> dict[str, Any] | None:
    """What was recorded in a file of its own; None where that is gone or was changed."""
    try:
        return read_sealed(directory.machine)
    except CorruptData:
        return None


def _of_warm_start(directory: RunDirectory) -> dict[str, Any] | None:
    """What was recorded with the warm start, in case the file is lost."""
    try:
        begun = directory.manifest("warm_start", 0)
    except CorruptData:
        return None
    return None if begun is None else begun.info["machine"]


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
