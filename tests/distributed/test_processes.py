"""Whole runs in several processes: the same as one, also when killed and resumed, by another number as well."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from reval_core.atomic_files import read_sealed
from reval_core.learning.processes import LARGEST_MESSAGE
from reval_core.maintenance.check import check_run
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table
from tests.distributed import whole_run
from tests.distributed.conftest import launched
from tests.runs import run


@cache
def finished(work: Path, shard: str, processes: int) -> RunDirectory:
    """A run that nothing disturbed."""
    directory = RunDirectory(work / f"{shard}-{processes}")
    if processes == 1:
        run(directory.path, whole_run.settings(shard))
    else:
        trace = directory.path.with_suffix(".trace")
        done = launched(processes, whole_run.__name__, shard, directory.path, "never", trace)
        assert done.returncode == 0, done.stdout[-9000:]
    return directory


@cache
def killed(work: Path) -> RunDirectory:
    """A sharded run in two processes that was killed in the updates of round 3."""
    directory = RunDirectory(work / "killed")
    done = launched(2, whole_run.__name__, "all", directory.path, 2)
    assert done.returncode != 0
    assert directory.manifest("sampling", 3) is not None
    assert directory.manifest("learning", 3) is None
    return directory


def resumed(directory: RunDirectory, path: Path, processes: int) -> RunDirectory:
    """A copy of a run, resumed until its end."""
    shutil.copytree(directory.path, path)
    done = launched(processes, whole_run.__name__, "all", path)
    assert done.returncode == 0, done.stdout[-9000:]
    return RunDirectory(path)


def column(directory: RunDirectory, round_index: int, table: str, name: str) -> np.ndarray:
    values = read_table(directory.path / directory.facts(round_index, table)).column(name)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def weights(directory: RunDirectory) -> list[str]:
    """The checksum of the weights after each round."""
    return [manifest.info["weights"] for manifest in directory.manifests(("learning",))]


@pytest.mark.parametrize("shard", ["none", "all"])
def test_a_run_in_two_processes_equals_one(work, shard):
    one, two = finished(work, "none", 1), finished(work, shard, 2)
    assert read_sealed(two.machine)["processes"] == 2
    for round_index in range(1, 5):
        for name in ("loss", "grad_norm"):
            expected = column(one, round_index, "updates", name)
            np.testing.assert_allclose(column(two, round_index, "updates", name), expected, rtol=1e-5)
        for name in ("log_policy", "log_ref", "delta", "engine_gap"):
            expected = column(one, round_index, "scores", name)
            np.testing.assert_allclose(column(two, round_index, "scores", name), expected, rtol=0, atol=1e-4)
    assert summarise(one)["final_accuracy"] == summarise(two)["final_accuracy"]


def test_announcements_name_their_inputs_and_do_not_carry_them(work):
    finished(work, "all", 2)
    announced = json.loads((work / "all-2.trace").read_text(encoding="utf-8"))
    assert {one["operation"] for one in announced} == {
        *("restore", "whole", "score", "learn", "save", "checksum", "stop")
    }
    assert max(one["size"] for one in announced) < LARGEST_MESSAGE / 8


def test_a_killed_run_resumes_bit_for_bit(work, tmp_path):
    again = resumed(killed(work), tmp_path / "again", 2)
    assert weights(again) == weights(finished(work, "all", 2))
    assert summarise(again)["policy_digest"] == summarise(finished(work, "all", 2))["policy_digest"]


def test_another_number_of_processes_resumes_the_run(work, tmp_path):
    """Identities stay, weights differ by rounding, and a single process reconstructs and checks the policies."""
    again, whole = resumed(killed(work), tmp_path / "again", 4), finished(work, "all", 2)
    manifests = again.manifests(("learning",))
    assert [one.info["processes"] for one in manifests] == [2, 2, 4, 4]
    assert [one.info["policy"] for one in manifests] == [
        one.info["policy"] for one in whole.manifests(("learning",))
    ]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(column(again, 4, "updates", name), column(whole, 4, "updates", name), rtol=1e-5)
    parts = list(check_run(again, whole_run.settings("all")))
    assert [one.part for one in parts][-1] == "replay"
    assert not [problem for one in parts for problem in one.problems]
