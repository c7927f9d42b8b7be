"""Starts small runs in separate processes without repeating the imports: it imports once, then forks.

Reads one JSON object per line (`path`, and the arguments of `strike`) and answers with the exit status of the run:
0 if it finished, −9 if it was killed, 1 if it stopped with an error, which is printed. With `mirror`, the run has a
mirror at that URL, and does not get further than round 1 before the mirror holds it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from reval.flows.rounds import train_rounds
from reval_core.config import Config, Storage
from reval_core.model.loading import make_tiny_model, make_tiny_tokenizer
from reval_core.pipeline.run_context import open_run_context
from reval_core.storage.run_directory import RunDirectory
from tests.faults.strike import strike
from tests.runs import run, small_config

CONFIG = small_config(
    rollouts__prompts=8,
    rollouts__prompts_per_shard=4,
    model__warm_start__steps=20,
    replay__capacity=80,
    reference__reset_every=2,
    checkpoints__keep=1,
    verification__workers=1,
)
"""Three rounds in two shards each, with a reset, checkpoints that are deleted, and a buffer that overflows."""

BEYOND = small_config(
    rollouts__prompts=8,
    rollouts__prompts_per_shard=4,
    model__warm_start__steps=20,
    objective={"kind": "reval", "beta_times_length": 3.5},
    reward__kind="signed",
    replay__capacity=80,
    learner__updates=6,
    learner__least_updates=2,
    reference__reset_below=0.95,
    checkpoints__keep=1,
    verification__workers=1,
)
"""The same, with β from the response length, and K and the reset from the residual."""

DYNAMIC = small_config(
    rollouts__prompts=8,
    rollouts__prompts_per_shard=4,
    rollouts__dynamic_sampling={"waves": 2},
    reward__overlong={"buffer": 2},
    model__warm_start__steps=60,
    replay__capacity=80,
    reference={"reset_every": 1, "ema": 0.75},
    checkpoints__keep=1,
    verification__workers=1,
)
"""The same, with dynamic sampling and an averaged reference."""

HALF = CONFIG.model_copy(update={"learner": CONFIG.learner.model_copy(update={"precision": "bfloat16"})})
"""The first in bfloat16: checkpoints hold the float32 weights, and a resumed run computes with their copy."""

CONFIGS = {"plain": CONFIG, "beyond": BEYOND, "dynamic": DYNAMIC, "half": HALF}


def main() -> None:
    torch.set_num_threads(1)
    assert CONFIG.model.tiny is not None
    make_tiny_model(CONFIG.model.tiny, seed=0)  # transformers imports lazily
    make_tiny_tokenizer(CONFIG.model.tiny.characters)
    for line in sys.stdin:
        request = json.loads(line)
        path = Path(request.pop("path"))
        child = os.fork()
        if child == 0:
            os._exit(_run(path, request))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(path: Path, request: dict[str, Any]) -> int:
    config, mirror = CONFIGS[request.pop("config", "plain")], request.pop("mirror", None)
    # Nothing is shared with other runs, not even the fitted model of the warm start.
    os.environ["XDG_CACHE_HOME"] = str(path.parent / "cache")
    try:
        with strike(**request):
            if mirror is None:
                run(path, config)
            else:
                _run_mirrored(path, config, mirror)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _run_mirrored(path: Path, config: Config, url: str) -> None:
    config = config.model_copy(update={"storage": Storage(mirror=url)})
    with open_run_context(RunDirectory(path), config) as context:
        assert context.mirror is not None
        for number in train_rounds(context):
            while number == 1 and context.mirror.lag.seconds:
                time.sleep(0.01)


if __name__ == "__main__":
    main()
