"""The memory of an update, estimated and measured: `python benchmarks/memory.py [--gpu]`.

Each case runs in its own process: model, optimizer, one update, then a second one whose peak is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.meter import measure
from benchmarks.workloads import Work, llama, texts
from reval_core.config import Config
from reval_core.learning.learner import Learner
from reval_core.learning.update import Drawn
from reval_core.planning.gpu_memory import stage_memory
from reval_core.planning.model_sizes import Sizes

CASES = [
    {"precision": precision, "gradient_checkpointing": checkpointing, "micro_batch_tokens": 2048}
    for precision in ("float32", "bfloat16")
    for checkpointing in (False, True)
]
VOCABULARY, WIDTH, LAYERS, HEADS, FEED_FORWARD = 16_000, 256, 8, 4, 768


def settings(case: dict[str, Any]) -> Config:
    """A run with a case's learner; its other settings do not affect an update."""
    sums = {"arithmetic": {"digits": 1}}
    return Config.model_validate(
        {
            "rounds": 1,
            "model": {"tiny": {}},
            "problems": {"train": sums, "held_out": sums},
            "rollouts": {"prompts": 1, "samples": 4, "max_tokens": 512},
            "objective": {"kind": "reval", "beta": 0.1},
            "replay": {"capacity": 4},
            "learner": {"updates": 1, "lr": 1e-6, **case},
        }
    )


_STANDING = ("weights", "copy", "moments", "other")
"""The memory held before the update."""


def peak(case: dict[str, Any], on_gpu: bool) -> dict[str, int]:
    """The bytes of an update beyond weights and moments: measured and estimated."""
    config = settings(case)
    model = llama(VOCABULARY, WIDTH, LAYERS, HEADS, FEED_FORWARD)
    length = config.learner.micro_batch_tokens // 4
    drawn = _drawn([length] * 8)
    learner = Learner(model, config.objective, config.learner, "start")
    learner.learn([drawn])
    measured = measure(lambda: learner.learn([drawn]), on_gpu).peak_above
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = (LAYERS, WIDTH, WIDTH, WIDTH, FEED_FORWARD, VOCABULARY)
    sizes = Sizes(parameters, parameters, *shape, tied=True, context=None)
    (learning,) = (one for one in stage_memory(config, sizes, 1, 0) if one.stage == "learning")
    estimated = sum(bytes for part, bytes in learning.parts.items() if part not in _STANDING)
    return {"measured": measured, "estimated": estimated}


def _drawn(lengths: list[int]) -> Drawn:
    nothing = np.zeros(len(lengths), dtype=np.float32)
    return draw(texts(lengths, VOCABULARY), reward=nothing, log_ref=nothing, value_ref=nothing)


def draw(work: Work, **known: np.ndarray) -> Drawn:
    """A draw of these texts, with `reward`, `log_ref` and `value_ref`, [B] each."""
    count = len(work.prompts)
    nothing, each = (
        np.zeros(count, dtype=np.float32),
        [np.zeros(len(one), dtype=np.float32) for one in work.responses],
    )
    return Drawn(
        ids=np.arange(count),
        prompts=work.prompts,
        responses=work.responses,
        written=[np.ones(len(response), dtype=bool) for response in work.responses],
        engine_logprobs=each,
        old_logprobs=each,
        truncated=np.zeros(count, dtype=bool),
        weight=nothing + 1,
        advantage=nothing,
        identity="benchmark",
        **known,
    )


def main() -> None:
    """Print a line per case."""
    on_gpu = "--gpu" in sys.argv
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here: nothing was measured")
    if "--case" in sys.argv:
        print(json.dumps(peak(json.loads(sys.argv[-1]), on_gpu)))
        return
    # Returns freed tensors to the system, so that they do not count as memory held before.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", *(["--gpu"] if on_gpu else [])]
        command += ["--case", json.dumps(case)]
        found = json.loads(subprocess.check_output(command, env=environment))
        shown = ", ".join(f"{name} {value}" for name, value in case.items())
        megabytes = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in found.items())
        print(f"{shown}: {megabytes} ({found['estimated'] / found['measured']:.2f})")


if __name__ == "__main__":
    main()
