"""Several processes in one run: the first runs the pipeline, the others hold the same learner and train with it.

Under `accelerate launch` every process starts the same command. The first process opens the run. Before a
collective operation of its learner (loading a checkpoint, or learning) it announces the operation to the others,
which do nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from reval_core import launch
from reval_core.errors import InputError, RunStopped

if TYPE_CHECKING:
    from reval_core.config import Config
    from reval_core.learning.learner import Learner
    from reval_core.storage.run_directory import RunDirectory

_PATIENCE = timedelta(days=1)
"""How long the processes wait for each other: longer than a round of rollouts may take."""

_out_of_step = False


def check_launch() -> None:
    """Raise InputError if the processes were launched in a way that a run does not support."""
    if _launched_with("ACCELERATE_USE_FSDP") or _launched_with("ACCELERATE_USE_DEEPSPEED"):
        raise InputError(
            "accelerate launch: generation and scoring need whole weights in the first process, and FSDP and "
            "DeepSpeed shard them; launch with --multi_gpu (DDP)"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise InputError("accelerate launch: compiled models are not supported; launch with --dynamo_backend no")


def tell(*message: Any) -> None:
    """Announce the next operation to the other processes, which wait in `follow`.

    Raises:
        RunStopped: After an earlier error the other processes may still be in another operation.
    """
    if launch.count() == 1:
        return
    if _out_of_step:
        raise RunStopped("the processes are out of step after an error; start the run again")
    _broadcast(message)


@contextmanager
def together() -> Iterator[None]:
    """Run a collective operation. After an error here, the others may still be inside it and receive no message."""
    global _out_of_step
    try:
        yield
    except RunStopped:
        raise  # all processes saw the same cause, so all have stopped
    except BaseException:
        _out_of_step = True
        raise


def dismiss() -> None:
    """Let the other processes exit. After an error they receive nothing, and the launcher terminates them."""
    if not _out_of_step:
        tell("stop")


def follow(directory: RunDirectory, run: Config) -> None:
    """Execute the operations that the first process announces, until it is done."""
    from reval_core.planning.gpu_memory import memory_advice
    from reval_core.planning.out_of_memory import explained_memory

    with explained_memory("learning", lambda: memory_advice(run, "learning")):
        _follow(directory, run)


def _follow(directory: RunDirectory, run: Config) -> None:
    import torch

    from reval_core.learning.checkpoints import load_learner
    from reval_core.learning.resolution import with_beta

    learner: Learner | None = None
    while True:
        match _broadcast(None):
            case "restore", checkpoint, threads:
                torch.set_num_threads(threads)
                learner = None  # free its memory before a second model is loaded
                learner = load_learner(checkpoint, directory.base, with_beta(run, directory))
            case "learn", draws:
                assert learner is not None, "the first process announces its learner before it learns"
                try:
                    learner.learn(draws)
                except RunStopped:
                    learner = None  # the first process stopped for the same reason and reports it
            case _:
                return


def _launched_with(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def _broadcast(message: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """Send the message of the first process to every process."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    received: tuple[Any, ...] = broadcast_object_list([message])[0]
    return received
