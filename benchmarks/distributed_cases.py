"""The runs of benchmarks/distributed.py, under torchrun, and one process that repeats them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reval.flows.rounds import train_rounds
from reval_core import launch
from reval_core.config import Config
from reval_core.config.loader import load_config
from reval_core.learning import distributed, processes
from reval_core.pipeline.reconstruction import recorded_policy
from reval_core.pipeline.run_context import RunContext, open_run_context
from reval_core.stages.consistency import TOKEN_COLUMNS
from reval_core.stages.noise import texts_of
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table


def settings(rounds: int) -> Config:
    """The demo with sharded weights, one thread per process, and a checkpoint in every round."""
    changes = [f"rounds={rounds}", "threads=1", "learner.shard=all", "learner.precision=float32"]
    changes += ["checkpoints.every=1", "checkpoints.keep=9", "evaluation.every=99"]
    return load_config(Path("configs/demo.yaml"), changes)


def run(path: Path, rounds: int) -> dict[str, Any]:
    """Train in all processes. Returns the seconds of the rounds after the first, and those of announcements."""
    config, directory = settings(rounds), RunDirectory(path)
    if not launch.is_first():
        distributed.follow(directory, config)
        return {}
    whole = control = 0.0
    largest = 0
    with open_run_context(directory, config) as context:
        started, announced = time.perf_counter(), 0
        for number in train_rounds(context):
            now, messages = time.perf_counter(), processes.trace[announced:]
            if number > 1:
                whole += now - started
                control += sum(one.seconds for one in messages)
                largest = max([largest, *(one.size for one in messages)])
            started, announced = now, len(processes.trace)
    return {"seconds": whole, "control_seconds": control, "largest_message": largest}


def compare(path: Path, rounds: int) -> dict[str, float]:
    """The largest differences of a round from one process that loads the same checkpoint, scores and learns."""
    losses, scores = [], []
    for number in range(1, rounds + 1):
        with open_run_context(RunDirectory(path), settings(rounds)) as context:
            scores.append(_score_difference(context, number))
            losses.append(_loss_difference(context, number))
    print(losses, scores, file=sys.stderr)
    return {"loss_difference": max(losses), "score_difference": max(scores)}


def _score_difference(context: RunContext, number: int) -> float:
    policy, rollouts = (
        recorded_policy(context.directory, number - 1),
        context.directory.manifest("rollouts", number),
    )
    assert policy is not None
    assert rollouts is not None
    files = rollouts.files_of("trajectories")
    rows = pa.concat_tables(read_table(context.directory.path / file.path, TOKEN_COLUMNS) for file in files)
    recorded = read_table(context.directory.path / context.directory.facts(number, "scores"))
    log_policy = recorded.column("log_policy").to_numpy()
    found = context.scores(context.by_policy(policy), texts_of(rows))
    return max(float(np.abs(part.scores.log_policy.numpy() - log_policy[part.rows]).max()) for part in found)


def _loss_difference(context: RunContext, number: int) -> float:
    """The largest relative difference of losses and gradient norms."""
    policy = recorded_policy(context.directory, number - 1)
    assert policy is not None
    updates = context.learner_at(policy).learn(context.draws.read(number))
    recorded = read_table(context.directory.path / context.directory.facts(number, "updates"))
    pairs = {"loss": [one.loss for one in updates], "grad_norm": [one.grad_norm for one in updates]}
    apart = [np.abs(np.array(here) / recorded.column(name).to_numpy() - 1).max() for name, here in pairs.items()]
    return float(max(apart))


def main(what: str, path: str, rounds: str) -> None:
    """Print the result as JSON in the first process."""
    found = {"run": run, "compare": compare}[what](Path(path), int(rounds))
    if launch.is_first():
        print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
