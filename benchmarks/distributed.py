"""Several processes against one: equality, the cost of control, and another number of processes.

    python benchmarks/distributed.py           writes baselines/distributed.json and reports missed limits
    python benchmarks/distributed.py --json    prints the metrics as well

The demo runs with sharded weights (`learner.shard: all`) in two processes on the CPU, on one host over gloo.

- `loss_difference`: the largest relative difference of losses and gradient norms from one process that loads the
  checkpoint before a round and learns from its recorded draws.
- `score_difference`: the largest difference in nats of log π(τ) from one process that scores the same trajectories.
- `control_overhead`: the share of a round that the first process spends on announcements until all processes have
  received them; `largest_message` is the largest in bytes.
- `replica_speedup`: tokens per second of two vLLM servers of one thread each over those of one
  (benchmarks/replicas.py, in the environment of `make venv-vllm`).
- `checkpoint_reshard`: whether a run of two processes continues with four from its sharded checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
from benchmarks import record, replicas
from reval_core.storage.run_directory import RunDirectory

ROUNDS = 4

LIMITS: record.Limits = {
    "loss_difference": ("at most", 1e-5),
    "score_difference": ("at most", 1e-4),
    "control_overhead": ("at most", 0.05),
    "checkpoint_reshard": ("at least", True),
}


def processes(count: int, *arguments: object) -> dict[str, Any]:
    """The result of a case in this number of processes."""
    launcher = () if count == 1 else ("torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m")
    return record.run(sys.executable, "-m", *launcher, "benchmarks.distributed_cases", *map(str, arguments))


def sharded(path: Path) -> dict[str, Any]:
    """The metrics of sharded runs."""
    took = processes(2, "run", path, ROUNDS)
    found: dict[str, Any] = processes(1, "compare", path, ROUNDS)
    found["control_overhead"] = took["control_seconds"] / took["seconds"]
    found["largest_message"] = took["largest_message"]
    processes(4, "run", path, ROUNDS + 1)
    learned = RunDirectory(path).manifests(("learning",))
    found["checkpoint_reshard"] = [one.info["processes"] for one in learned] == [2] * ROUNDS + [4]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = sharded(Path(directory) / "run")
    found["replica_speedup"] = replicas.measure()
    if given.json:
        print(json.dumps(found))
    record.record("distributed", found, LIMITS, ("torch", "transformers"))


if __name__ == "__main__":
    main()
