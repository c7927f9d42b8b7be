"""The learner's memory and speed, as ratios to a baseline in the same run on the same machine.

    python benchmarks/learner.py             writes benchmarks/baselines/learner.json and reports missed limits

The comparison with TRL needs `make bench-peers` first, which installs TRL in a separate environment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.record import record, run
from benchmarks.workloads import TRL_LENGTHS

PEERS = ROOT / ".venv-peers/bin/python"
REPEATS = 3

LIMITS: dict[str, tuple[str, float]] = {
    "head_memory_ratio": ("at most", 1 / 12),
    "head_time_ratio": ("at most", 0.6),
    "useful_tokens_ratio": ("at least", 2.0),
    "trl_speed_ratio": ("at least", 1.5),
    "trl_memory_ratio": ("at most", 1.0),
    "stage_vs_bare": ("at least", 0.9),
    "demo_stages_ratio": ("at most", 0.85),
}
"""The learner's limits; a run of this file reports those that were missed."""


BEFORE = "fe2ce9ec2fdc4d65574b4b3da7843edfea724028"
"""The commit that the demo's stages are compared with: the last one before the bfloat16 copy."""


def case(name: str) -> dict[str, Any]:
    print(name, flush=True)
    return run(sys.executable, "benchmarks/learner_cases.py", name)


def in_turn(ours: Any, theirs: Any) -> dict[str, Any]:
    """Two workloads measured in alternation, and the ratio ours / theirs.

    Uses the shortest time, which other work on a shared machine disturbed least, and the median memory.
    """
    pairs = [(ours(), theirs()) for _ in range(REPEATS)]
    for mine, other in pairs:
        difference = abs(mine["grad_norm"] / other["grad_norm"] - 1)
        if difference > 1e-3:
            raise SystemExit(f"the two do not do the same work: gradients differ by {difference:.1e}")
    mine, other = (
        {
            "seconds": min(pair[side]["seconds"] for pair in pairs),
            "peak_above": statistics.median(pair[side]["peak_above"] for pair in pairs),
        }
        for side in (0, 1)
    )
    versions = {pair[1]["version"] for pair in pairs if "version" in pair[1]}
    return {
        "version": ", ".join(versions) or None,
        "time_ratio": mine["seconds"] / other["seconds"],
        "memory_ratio": mine["peak_above"] / other["peak_above"],
        "ours": mine,
        "theirs": other,
    }


def demo_stages() -> dict[str, Any] | None:
    """Seconds of the demo's consistency and learning here and at `BEFORE`, in alternation. None if git lacks it."""
    with tempfile.TemporaryDirectory() as path:
        before = Path(path) / "before"
        made = subprocess.run(["git", "worktree", "add", "--detach", before, BEFORE], cwd=ROOT, capture_output=True)
        if made.returncode:
            return None
        try:
            pairs = [(demo_in(ROOT), demo_in(before)) for _ in range(REPEATS)]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    now, then = (
        {
            name: statistics.median(pair[side][name] for pair in pairs)
            for name in ("seconds", "consistency", "learning")
        }
        for side in (0, 1)
    )
    return {"ratio": now["seconds"] / then["seconds"], "now": now, "before": then, "commit_before": BEFORE}


def demo_in(tree: Path) -> dict[str, Any]:
    print(f"demo in {tree.name}", flush=True)
    return run(sys.executable, str(ROOT / "benchmarks/demo_stages.py"), tree=tree)


def measure_all() -> dict[str, Any]:
    """Every ratio of LIMITS that can be measured here, with its parts."""
    head = in_turn(lambda: case("sliced"), lambda: case("unchunked"))
    mixed, stage, rounding = case("mixed"), case("stage"), case("rounding")
    found = {
        "head_memory_ratio": head["memory_ratio"],
        "head_time_ratio": head["time_ratio"],
        "useful_tokens_ratio": mixed["bucketed_tokens_per_second"] / mixed["padded_tokens_per_second"],
        "stage_vs_bare": stage["stage_updates_per_second"] / stage["bare_updates_per_second"],
        "details": {"head": head, "mixed": mixed, "stage": stage, "bfloat16_logprob_error": rounding},
    }
    demo = demo_stages()
    if demo is None:
        print(f"the demo's stages are not compared: this clone has no commit {BEFORE}")
    else:
        found["demo_stages_ratio"] = demo.pop("ratio")
        found["details"]["demo_stages"] = demo
    if not PEERS.exists():
        print("TRL is not measured: run make bench-peers first")
        return found
    theirs = "benchmarks/peers/trl_grpo.py"
    trl = in_turn(lambda: case("grpo"), lambda: run(str(PEERS), theirs, json.dumps(TRL_LENGTHS)))
    found |= {"trl_speed_ratio": 1 / trl["time_ratio"], "trl_memory_ratio": trl["memory_ratio"]}
    found["details"]["trl"] = trl
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    record("learner", measure_all() | {"limits": LIMITS}, LIMITS, ("torch", "transformers"))


if __name__ == "__main__":
    main()
