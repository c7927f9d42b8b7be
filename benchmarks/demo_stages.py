"""Seconds that the demo's consistency and learning take, in the tree that this is run from.

benchmarks/learner.py runs it in this tree and in an older one: it uses only what both have.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import reval_core
from flows.rounds import train_rounds
from reval_core import stages
from reval_core.loading import load_config
from reval_core.run_folder import RunFolder
from reval_core.session import open_session

ROUNDS = 6
"""The first is left out: it loads what later ones find in memory, and its reference is the policy."""

MEASURED = ("consistency", "learning")


def main() -> None:
    config = load_config(Path("configs/demo.yaml"), [f"rounds={ROUNDS}"])
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path) / "run")
        with open_session(folder, config) as session:
            for _ in train_rounds(session, stages):
                pass
        manifests = [one for one in folder.manifests() if one.round > 1]
    took = {stage: sum(one.seconds for one in manifests if one.stage == stage) for stage in MEASURED}
    print(json.dumps({"tree": reval_core.__file__, "seconds": sum(took.values()), **took}))


if __name__ == "__main__":
    main()
