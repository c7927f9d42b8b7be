"""Several processes learn what one does: DDP and FSDP2, under `accelerate launch`, on CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import process_learner

HERE = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
DDP = ["--multi_gpu"]  # accelerate's name for several processes on one machine
FSDP2 = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]


def learn(launch: list[str], target: Path) -> dict:
    """What the first of two processes wrote."""
    command = [*LAUNCH, *launch, "-m", "tests.integration.process_learner", str(target)]
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(target.read_text())


@pytest.mark.parametrize(("launch", "kind"), [(DDP, "Parameter"), (FSDP2, "DTensor")], ids=["ddp", "fsdp2"])
def test_two_processes_learn_what_one_learns(launch, kind, tmp_path):
    found = learn(launch, tmp_path / "found.json")
    for objective in process_learner.OBJECTIVES:
        alone, together = process_learner.three_updates(objective), found[objective.kind]
        assert (alone["processes"], together["processes"], together["sharded"]) == (1, 2, kind)
        assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert together["norms"] == pytest.approx(alone["norms"], rel=1e-5)
        for one, other in zip(alone["deltas"], together["deltas"], strict=True):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-4)
        assert together["weights"] == pytest.approx(alone["weights"], rel=1e-5)
