"""Accuracy and time per stage of the demo's configs, per seed, without Prefect.

    python benchmarks/demo.py configs/demo.yaml --seeds 0 1 2
    python benchmarks/demo.py configs/demo-grpo.yaml --seeds 0

Writes benchmarks/baselines/<config name>.json. Runs use a temporary directory and share only warm starts.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from reval.flows.rounds import train_rounds
from reval_core.atomic_files import publish_json
from reval_core.config.loader import load_config
from reval_core.pipeline.run_context import open_run_context
from reval_core.replay_buffer.index import sql_views
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory


def measure(config: Path, seed: int) -> dict[str, Any]:
    """One run's metrics."""
    with tempfile.TemporaryDirectory() as path:
        directory = RunDirectory(Path(path) / "run")
        with open_run_context(directory, load_config(config, [f"seed={seed}"])) as context:
            for round in train_rounds(context):
                print(f"{config.stem} seed {seed}: round {round}", end="\r", flush=True)
        summary = summarise(directory)
        overhead = sql_views(directory.path, directory.manifests()).sql("SELECT median(other_seconds) FROM rounds")
        (overhead_seconds,) = overhead.fetchall()[0]
    print(f"{config.stem} seed {seed}: {summary['initial_accuracy']:.3f} → {summary['final_accuracy']:.3f}")
    kept = (
        "initial_accuracy",
        "final_accuracy",
        "best_accuracy",
        "rounds",
        "updates",
        "wall_seconds",
        "stage_seconds",
    )
    return {"seed": seed, **{name: summary[name] for name in kept}, "other_seconds_a_round": overhead_seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    runs = [measure(arguments.config, seed) for seed in arguments.seeds]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    publish_json(
        Path("benchmarks/baselines") / f"{arguments.config.stem}.json",
        {
            "config": str(arguments.config),
            "runs": runs,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "commit": commit,
            "date": datetime.date.today().isoformat(),
        },
    )


if __name__ == "__main__":
    main()
