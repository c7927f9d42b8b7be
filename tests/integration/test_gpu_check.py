"""The GPU checks, run on a CPU with a small model, so that they also work when there is a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_check, gpu_numerics, gpu_run, learner_gpu
from benchmarks.gpu_model import SMALL, ModelSource
from benchmarks.record import misses
from reval_core.model.low_precision import LowPrecisionCopy

ROOT = Path(__file__).parents[2]

ABSENT = """
import runpy, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    absent = {absent}

    @classmethod
    def find_spec(cls, name, *args, **kwargs):
        return None if name.split(".")[0] in cls.absent else super().find_spec(name, *args, **kwargs)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script as if these packages were not installed."""


def run_without(absent: set[str], *arguments: str) -> subprocess.CompletedProcess:
    script = [sys.executable, "-c", ABSENT.format(absent=absent), str(ROOT / "benchmarks/gpu_check.py")]
    return subprocess.run([*script, *arguments], capture_output=True, text=True)


def on_cpu(*arguments: str) -> tuple[str, ...]:
    return "--device", "cpu", "--small", *arguments


def test_without_a_gpu_it_is_skipped_with_a_message(tmp_path):
    done = run_without({"torch"}, "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0 or Path("/dev/nvidiactl").exists(), done.stderr
    if not Path("/dev/nvidiactl").exists():
        assert "skipped: no GPU was found" in done.stdout
        assert "no GPU" in json.loads((tmp_path / "found.json").read_text())["skipped"]
    if not torch.cuda.is_available():
        done = run_without(set())
        assert (done.returncode, done.stdout) == (0, "gpu-check: skipped: torch finds no GPU\n")


def test_checks_of_numerics_and_speed_need_only_torch_transformers_and_numpy(tmp_path):
    absent = {"pydantic", "duckdb", "prefect", "mlflow", "math_verify", "pyarrow", "pandas", "peft", "pytest"}
    done = run_without(absent, *on_cpu("--json", str(tmp_path / "found.json")))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["checks"]) == [*gpu_numerics.CHECKS, "speed"]
    assert all(check["passed"] for check in found["checks"].values())
    for name, limits in gpu_numerics.LIMITS.items():
        assert limits.keys() <= found["checks"][name]["figures"].keys()
    assert found["checks"]["speed"]["figures"].keys() == {*learner_gpu.CASES, "the update alone"}
    assert list(found["skipped"]) == ["memory", "learner", "resume"]
    assert "needs pydantic" in found["skipped"]["memory"]


def test_a_check_that_fails_is_recorded_and_the_others_still_run(tmp_path, monkeypatch, capsys):
    def broken(source):
        raise RuntimeError("no kernel image")

    beyond = {"copy_to_float32": 0.5, "alone_to_padded": float("nan")}
    checks = {"head": broken, "scoring": lambda source: beyond, "draws": gpu_numerics.draws}
    monkeypatch.setattr(gpu_numerics, "CHECKS", checks)
    found = tmp_path / "found.json"
    monkeypatch.setattr("sys.argv", ["", *on_cpu("--json", str(found), "--only", *checks)])
    assert gpu_check.main() == 1
    results = json.loads(found.read_text())["checks"]
    assert results["head"]["failures"] == ["RuntimeError: no kernel image"]
    assert results["scoring"]["failures"] == [
        "copy_to_float32 is 0.500, and should be at most 0.020",
        "alone_to_padded is nan, and should be at most 0.020",
    ]
    assert results["draws"]["passed"]
    assert "FAILED" in capsys.readouterr().out


def test_a_copy_that_is_not_refreshed_is_found(monkeypatch):
    monkeypatch.setattr(LowPrecisionCopy, "refresh", lambda self: None)
    figures = gpu_numerics.gap(ModelSource(SMALL, torch.device("cpu")))
    missed = [miss.split()[0] for miss in misses(figures, gpu_numerics.LIMITS["gap"])]
    assert missed == ["seen_1", "seen_4", "seen_16", "gap_16"]


def test_speed_limits_apply_only_to_the_gpus_that_they_are_for():
    cases = {"1 x 16384": {"tokens_per_second": 39_000.0, "peak_gib": 30.0}, "stream": {"error": "RuntimeError: x"}}
    slow, broken = "1 x 16384: tokens_per_second is 39000.000", "stream: RuntimeError: x"
    assert [one[: len(slow)] for one in learner_gpu.failures(cases, "NVIDIA H100 80GB HBM3")] == [broken, slow]
    assert learner_gpu.failures(cases, "NVIDIA L4") == [broken]


def test_the_stream_is_of_fourteen_micro_batches():
    groups = learner_gpu.CASES["stream"].groups(learner_gpu.STREAM, learner_gpu.BUDGET)
    shapes = {(len(rows), learner_gpu.STREAM[rows[0]]) for rows in groups}
    assert len(groups) == len(shapes) == 14
    assert all(12_000 < rows * longest <= learner_gpu.BUDGET for rows, longest in shapes)


def test_a_learner_meets_noise_and_signal():
    found, failures = gpu_run.learner(SimpleNamespace(device="cpu", precisions=["bfloat16"]))
    assert failures == []
    assert (found["bfloat16_no_reward_skipped"], found["bfloat16_no_reward_moved"]) == (1.0, False)
    assert (found["bfloat16_reward_skipped"], found["bfloat16_reward_moved"]) == (0.0, True)


def test_a_run_is_killed_and_resumed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_run", "resume", "--device", "cpu", "--precisions", "bfloat16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == []
    assert found["figures"]["bfloat16_rounds_equal_to_the_bit"] == [True] * 4
    assert 0 < found["figures"]["bfloat16_stages_kept"] < found["figures"]["bfloat16_stages"]


@pytest.mark.parametrize(
    ("exits", "problem"),
    [
        ({"whole": 0, "killed": 0, "resumed": 0}, "the killed run ended with status 0"),
        ({"whole": 0, "killed": -9, "resumed": 1}, "the resumed run ended with status 1"),
    ],
)
def test_a_run_that_did_not_die_or_did_not_resume_is_reported(tmp_path, exits, problem):
    wrong, _ = gpu_run._compared(tmp_path, {}, exits)
    assert wrong == [problem]
