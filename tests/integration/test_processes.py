"""Several processes learn the same as one: DDP and FSDP2, under `accelerate launch`, on CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reval_core.atomic_files import read_sealed
from reval_core.errors import InputError
from reval_core.learning.distributed import check_launch
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table
from tests.integration import process_learner
from tests.runs import run, small_config

HERE = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
DDP = ["--multi_gpu"]  # accelerate's name for several processes on one machine
FSDP2 = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]


def in_two_processes(launch: list[str], *arguments: str) -> None:
    command = [*LAUNCH, *launch, "-m", "tests.integration.process_learner", *arguments]
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("launch", "kind"), [(DDP, "Parameter"), (FSDP2, "DTensor")], ids=["ddp", "fsdp2"])
def test_two_processes_learn_the_same_as_one(launch, kind, tmp_path):
    in_two_processes(launch, "learn", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    for objective in process_learner.OBJECTIVES:
        alone, together = process_learner.three_updates(objective), found[objective.kind]
        assert (alone["processes"], together["processes"], together["sharded"]) == (1, 2, kind)
        assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert together["norms"] == pytest.approx(alone["norms"], rel=1e-5)
        for one, other in zip(alone["deltas"], together["deltas"], strict=True):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-4)
        assert together["weights"] == pytest.approx(alone["weights"], rel=1e-5)
    if kind == "Parameter":
        alone, together = (
            process_learner.three_updates(process_learner.OBJECTIVES[0], "bfloat16"),
            found["bfloat16"],
        )
        assert together["losses"] == pytest.approx(alone["losses"], rel=2e-2)
        assert together["norms"] == pytest.approx(alone["norms"], rel=2e-2)


def test_a_run_in_two_processes_equals_one_and_resumes_only_in_two(tmp_path):
    in_two_processes(DDP, "run", str(tmp_path / "two"))
    settings = small_config(
        rounds=2, reference__reset_every=1, objective={"kind": "reval", "beta_times_length": 0.25}
    )
    run(tmp_path / "one", settings)
    one, two = (
        read_table(directory.path / directory.facts(1, "updates"))
        for directory in (RunDirectory(tmp_path / "one"), RunDirectory(tmp_path / "two"))
    )
    for name in ("loss", "grad_norm"):
        assert two.column(name).to_pylist() == pytest.approx(one.column(name).to_pylist(), rel=1e-4)
    assert read_sealed(RunDirectory(tmp_path / "two").machine)["processes"] == 2
    with pytest.raises(InputError, match="resume with accelerate launch --num_processes 2"):
        run(tmp_path / "two", settings)


def test_sharded_weights_are_refused_for_a_run(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="--multi_gpu"):
        check_launch()
