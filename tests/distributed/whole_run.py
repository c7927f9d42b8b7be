"""Started by torchrun: a small run with sharded weights in all processes, killed in the middle if asked to."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from reval.flows.rounds import train_rounds
from reval_core import launch
from reval_core.config import Config
from reval_core.learning import distributed, processes
from reval_core.pipeline.run_context import open_run_context
from reval_core.storage.run_directory import RunDirectory
from tests.runs import small_config


def settings(shard: str) -> Config:
    """Two reference resets, one of them in the last round; β from the first responses."""
    return small_config(
        rounds=4,
        learner__shard=shard,
        reference__reset_every=2,
        checkpoints__every=3,
        objective={"kind": "reval", "beta_times_length": 0.25},
    )


def main(shard: str, path: str, killed_after: str = "", trace: str = "") -> None:
    """Run until the end, or until the first process kills itself in the round after `killed_after`."""
    config, directory = settings(shard), RunDirectory(Path(path))
    if not launch.is_first():
        distributed.follow(directory, config)
        return
    with open_run_context(directory, config) as context:
        for number in train_rounds(context):
            if str(number) == killed_after:
                _kill_in_learning(number + 1)
    if trace:
        announced: list[Any] = [vars(one) for one in processes.trace]
        Path(trace).write_text(json.dumps(announced))


def _kill_in_learning(round_index: int) -> None:
    """Die like a killed process in the middle of the next round's updates."""
    from reval_core.learning.learner import Learner

    step, steps = Learner._step, []

    def dying(self: Learner) -> None:
        step(self)
        steps.append(round_index)
        os.kill(os.getpid(), signal.SIGKILL)

    Learner._step = dying  # type: ignore[method-assign]


if __name__ == "__main__":
    main(*sys.argv[1:])
