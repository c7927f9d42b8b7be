"""Seconds of the demo's consistency and learning stages, in the current source tree.

benchmarks/learner.py runs it in this tree and in an older one, so it uses only what both have.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import reval_core
from reval.flows.rounds import train_rounds
from reval_core.config.loader import load_config
from reval_core.pipeline.run_context import open_run_context
from reval_core.storage.run_directory import RunDirectory

ROUNDS = 6
"""The first round is excluded: it loads what later ones find in memory, and its reference is the policy."""

MEASURED = ("consistency", "learning")


def main() -> None:
    config = load_config(Path("configs/demo.yaml"), [f"rounds={ROUNDS}"])
    with tempfile.TemporaryDirectory() as path:
        directory = RunDirectory(Path(path) / "run")
        with open_run_context(directory, config) as context:
            for _ in train_rounds(context):
                pass
        manifests = [one for one in directory.manifests() if one.round > 1]
    took = {stage: sum(one.seconds for one in manifests if one.stage == stage) for stage in MEASURED}
    print(json.dumps({"tree": reval_core.__file__, "seconds": sum(took.values()), **took}))


if __name__ == "__main__":
    main()
