"""The disk fills up in each stage: the run reports it, reads no partial files, and resumes once there is space."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reval_core.report.summary import summarise
from reval_core.storage.run_directory import STAGES, RunDirectory
from tests.faults.zygote import CONFIG
from tests.integration.test_training import tables
from tests.runs import run

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
SHORT = ("rollouts", "learning")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with enough space, and a function that runs one without."""
    directory = tmp_path_factory.mktemp("undisturbed")
    mount = ["mount", "-t", "tmpfs", "none", str(directory)]
    if shutil.which("unshare") is None or subprocess.run([*ALONE, *mount], capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a small file system")
    run(directory / "run", CONFIG)
    return RunDirectory(directory / "run")


@pytest.mark.parametrize(
    "stage", [pytest.param(one, marks=[pytest.mark.full] * (one not in SHORT)) for one in STAGES]
)
def test_a_full_disk_stops_the_run_and_loses_nothing(undisturbed, tmp_path, stage):
    command = [*ALONE, sys.executable, "-m", "tests.faults.full_disk", str(tmp_path), stage]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "the disk is full" in found["message"]
    assert "free some space and run the same command again" in found["message"]
    assert found["partial"] == []
    assert found["digest"] == summarise(undisturbed)["policy_digest"]
    assert found["rows"] == {table: len(rows) for table, rows in tables(undisturbed).items()}
