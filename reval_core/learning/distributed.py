"""Several processes in one run: the first runs the pipeline, the others hold the same models and compute with it.

Under `accelerate launch` or torchrun every process starts the same command. The first process opens the run: it
alone writes to the run directory, and has the database, the engine and the verifier. Before a collective operation
it announces the operation to the others, which do nothing else: `restore` a checkpoint, `learn` from the recorded
draws of a round, `score` trajectories, and with sharded weights gather the `whole` model, `save` their part of a
checkpoint, and compute a `checksum`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval_core import launch
from reval_core.errors import InputError, RunStopped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reval_core.config import Config
    from reval_core.learning.draws import DrawReader
    from reval_core.learning.learner import Learner
    from reval_core.learning.replica import Replica
    from reval_core.learning.shared_scoring import Groups, Scored, Scoring, Texts
    from reval_core.storage.run_directory import RunDirectory

_out_of_step = False


def check_launch(shard: str = "none") -> None:
    """Check the launched processes, for a run with this `learner.shard`.

    Raises:
        InputError: If they were launched in a way that the run does not support.
    """
    if _launched_with("ACCELERATE_USE_FSDP") or _launched_with("ACCELERATE_USE_DEEPSPEED"):
        raise InputError(
            "accelerate launch: reval shards weights itself; launch with --multi_gpu or torchrun, and set "
            "learner.shard: all"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise InputError("accelerate launch: compiled models are not supported; launch with --dynamo_backend no")
    count, local = launch.count(), launch.local_count()
    if shard != "none" and count == 1:
        raise InputError(
            f"learner.shard: {shard} needs several processes; start them with torchrun --nproc-per-node N "
            "-m reval.flows.cli train …, or set learner.shard: none"
        )
    if shard == "node" and count % local:
        raise InputError(
            f"learner.shard: node needs as many processes on every host, not {local} of {count} on this one; "
            "launch the same number everywhere, or set learner.shard: all"
        )


def tell(operation: str, **details: Any) -> None:
    """Announce the next operation to the other processes, which wait in `follow`.

    Raises:
        RunStopped: After an earlier error the other processes may still be in another operation.
    """
    if launch.count() == 1:
        return
    if _out_of_step:
        raise RunStopped("the processes are out of step after an error; start the run again")
    from reval_core.learning import processes

    processes.announce({"operation": operation, **details})


@contextmanager
def together(operation: str, **details: Any) -> Iterator[None]:
    """Announce an operation, and run this process's part of it inside the context.

    After an error here, the others may still be inside the operation and receive no further message.
    """
    global _out_of_step
    tell(operation, **details)
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


def scored(
    replica: Replica,
    by: str,
    texts: Texts,
    groups: Groups,
    scoring: Scoring,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scored]:
    """Score micro-batches in all processes of the run. See `Replica.scores`."""
    from reval_core.learning import processes
    from reval_core.learning.shared_scoring import flattened

    sizes, flat = flattened(texts, groups) if launch.count() > 1 else ([], None)
    with together("score", by=by, sizes=sizes, scoring=asdict(scoring)):
        if flat is not None:
            processes.share(flat)
        return replica.scores(by, texts, groups, scoring, tick)


@contextmanager
def whole(learner: Learner, masters: bool = False) -> Iterator[PreTrainedModel]:
    """The whole model in this process inside the context, gathered from all processes. See `Learner.whole`."""
    with ExitStack() as stack:
        with _if_sharded(learner, "whole", masters=masters):
            model = stack.enter_context(learner.masters() if masters else learner.whole())
        yield model


def checksum(learner: Learner) -> str:
    """The checksum of the learner's weights, computed by all processes that hold a part of them."""
    with _if_sharded(learner, "checksum"):
        return learner.checksum()


def saving(learner: Learner, directory: Path) -> AbstractContextManager[None]:
    """Inside the context all processes write their part of a checkpoint to `directory`."""
    return _if_sharded(learner, "save", directory=str(directory.absolute()))


def follow(directory: RunDirectory, run: Config) -> None:
    """Execute the operations that the first process announces, until it is done."""
    from reval_core.planning.gpu_memory import memory_advice
    from reval_core.planning.out_of_memory import explained_memory

    with explained_memory("learning", lambda: memory_advice(run, "learning")):
        _follow(directory, run)


def _follow(directory: RunDirectory, run: Config) -> None:
    import torch

    from reval_core.learning import processes
    from reval_core.learning.checkpoints import load_learner
    from reval_core.learning.draws import DrawReader
    from reval_core.learning.replica import Replica
    from reval_core.learning.resolution import with_beta
    from reval_core.learning.shared_scoring import Scoring, restored

    replica, reader = Replica(directory.path, run), DrawReader(directory)
    while True:
        message, learner = processes.receive(), replica.learner
        match message["operation"]:
            case "restore":
                torch.set_num_threads(message["threads"])
                learner = replica.learner = None  # free its memory before a second model is loaded
                checkpoint = directory.checkpoint(message["round"])
                replica.learner = load_learner(checkpoint, directory.base, with_beta(run, directory))
            case "score":
                flat = torch.empty(message["sizes"][-1], dtype=torch.int32)
                processes.share(flat)
                replica.scores(message["by"], *restored(message["sizes"], flat), Scoring(**message["scoring"]))
            case "stop":
                return
            case operation:
                assert learner is not None, "the first process loads a learner before it uses one"
                _use(learner, operation, message, reader)
                if learner.policy is None:
                    replica.learner = None


def _use(learner: Learner, operation: str, message: dict[str, Any], reader: DrawReader) -> None:
    """Take part in an operation of the learner."""
    from reval_core.learning.checkpoints import save_shards

    match operation:
        case "learn":
            with suppress(RunStopped):  # the first process stops for the same reason and reports it
                learner.learn(reader.read(message["round"]), keep_before=message["keep_before"])
        case "whole":
            with learner.masters() if message["masters"] else learner.whole():
                pass
        case "save":
            save_shards(Path(message["directory"]), learner)
        case "checksum":
            learner.checksum()


def _if_sharded(learner: Learner, operation: str, **details: Any) -> AbstractContextManager[None]:
    return together(operation, **details) if learner.is_sharded else nullcontext()


def _launched_with(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
