"""A run on a separate disk that fills up when a stage starts, and is resumed once there is space.

usage: python -m tests.faults.full_disk DIRECTORY STAGE

Mounts a small tmpfs on DIRECTORY, in a namespace of this process: it is invisible to other processes, and unmounted
with this one. Prints, as JSON, the message with which the run stopped, the partial files, and the result of the
resumed run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from reval_core.errors import RunStopped
from reval_core.stages.stage import Stage
from reval_core.storage.run_directory import RunDirectory
from tests.faults.zygote import CONFIG
from tests.integration.test_training import tables
from tests.runs import run

BYTES = 48 << 20


def main(directory: Path, stage: str) -> None:
    torch.set_num_threads(1)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={BYTES}", "none", str(directory)], check=True)
    os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
    ballast, path = directory / "ballast", directory / "run"
    call = Stage.__call__

    def in_stage(self: Stage, context: Any, round: int, *inputs: Any) -> Any:
        if self.name == stage and round == (0 if stage == "warm_start" else 2) and not ballast.exists():
            _fill(ballast)
        return call(self, context, round, *inputs)

    with patch.object(Stage, "__call__", in_stage):
        message = ""
        try:
            run(path, CONFIG)
        except RunStopped as error:
            message = str(error)
    partial = [str(file) for file in path.rglob("*.partial")]
    ballast.unlink()
    summary = run(path, CONFIG)
    assert summary is not None
    rows = {table: len(found) for table, found in tables(RunDirectory(path)).items()}
    print(json.dumps({"message": message, "partial": partial, "digest": summary["policy_digest"], "rows": rows}))


def _fill(ballast: Path) -> None:
    with ballast.open("wb") as file:
        size = 1 << 20
        while size:
            try:
                os.write(file.fileno(), bytes(size))
            except OSError:
                size //= 2


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
