"""Started by `test_processes` under `accelerate launch`: three updates with each of two objectives, or a run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from reval_core import config, launch
from reval_core.learning import distributed
from reval_core.learning.learner import Learner
from reval_core.storage.run_directory import RunDirectory
from tests.models import drawn, tiny_model
from tests.runs import run, small_config

OBJECTIVES = [config.Reval(kind="reval", beta=0.5), config.Grpo(kind="grpo", mean="token")]


def allow_fsdp_on_cpu() -> None:
    """Accelerate shards only on accelerators, but its code also works on a CPU."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU


def three_updates(objective: config.Reval | config.Grpo, precision: str = "float32") -> dict[str, Any]:
    """Losses, gradient norms, residuals and the size of every weight."""
    model = tiny_model()
    batches = [drawn(model, count=13, seed=seed) for seed in range(3)]
    settings = config.Learner(updates=3, lr=1e-3, micro_batch_tokens=24, precision=precision)
    learner = Learner(model, objective, settings, "start")
    updates = learner.learn(batches)
    return {
        "processes": learner.processes,
        "sharded": type(next(model.parameters())).__name__,
        "losses": [update.loss for update in updates],
        "norms": [update.grad_norm for update in updates],
        "deltas": [update.delta.tolist() for update in updates],
        "weights": {name: tensor.double().abs().sum().item() for name, tensor in learner.state().items()},
    }


def whole_run(path: Path) -> None:
    """A small run in all processes."""
    settings = small_config(
        rounds=2, reference__reset_every=1, objective={"kind": "reval", "beta_times_length": 0.25}
    )
    if launch.is_first():
        run(path, settings)
    else:
        distributed.follow(RunDirectory(path), settings)


def main(what: str, target: Path) -> None:
    """Learn, and write the first process's results to `target` per objective; or train in directory `target`."""
    torch.set_num_threads(1)
    if what == "run":
        whole_run(target)
        return
    if os.environ.get("ACCELERATE_USE_FSDP"):
        allow_fsdp_on_cpu()
    found = {objective.kind: three_updates(objective) for objective in OBJECTIVES}
    if not os.environ.get("ACCELERATE_USE_FSDP"):
        found["bfloat16"] = three_updates(OBJECTIVES[0], "bfloat16")
    if int(os.environ.get("RANK", "0")) == 0:
        target.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
