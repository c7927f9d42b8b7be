"""A run that was stopped by the commit before the modules moved: it is read, checked, queried and resumed."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from reval_core.atomic_files import publish_sealed, read_sealed
from reval_core.config.loader import load_config
from reval_core.pipeline.run_context import open_run_context
from reval_core.storage.run_directory import RunDirectory
from tests.commands import Reval, command
from tests.runs import run

ARCHIVE = Path(__file__).parents[1] / "data" / "run-before-wings.tar.xz"
"""Three rounds, stopped in round 2 before sampling. tests/data/README.md states its origin."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(path, filter="data")
    return path


@pytest.fixture
def reval(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Reval:
    return command(capfd, monkeypatch)


UNDISTURBED = "84ebafdd1c1a11ea78fcaad7de60723e5e276578c57d94e8d408e6627d383632"
"""The policy digest of the same run made by that commit without an interruption."""


def files(path: Path) -> dict[str, bytes]:
    """The shards and the tables."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*.parquet"))}


def with_the_versions_here(path: Path) -> Path:
    """Record the versions of torch and the other packages that are installed here, since others are refused."""
    machine = RunDirectory(path).machine
    recorded = read_sealed(machine)
    (machine.parent / "new").mkdir()
    with open_run_context(RunDirectory(machine.parent / "new"), load_config(path / "config.yaml")) as context:
        here = context.machine
    kept = {name: here[name] for name in ("torch", "transformers", "verifier", "python", "cores", "device")}
    publish_sealed(machine, {**recorded, **kept})
    return path


def test_it_is_checked_and_queried(old, reval):
    before = files(old)
    checked = reval("check", old)
    assert (checked.code, "problem" in checked.out) == (0, False), checked.out
    counted = reval(
        "sql", old, "SELECT round, count(*) AS n FROM trajectories GROUP BY round ORDER BY round", "--csv"
    )
    assert counted.out.split() == ["round,n", "1,16", "2,16"], counted.err
    judged = reval("sql", old, "SELECT count(*) AS n FROM verdicts", "--csv")
    assert judged.out.split() == ["n", "32"]
    assert "1/3" in reval("runs", old.parent).out
    assert files(old) == before


def test_it_resumes_from_the_last_completed_stage(old, reval):
    before = files(old)
    summary = run(with_the_versions_here(old), load_config(old / "config.yaml"))
    after = files(old)
    assert {name: after[name] for name in before} == before  # nothing published is written again
    assert (summary["rounds"], summary["trajectories"]) == (3, 48)
    checked = reval("check", old)
    assert checked.code == 0, checked.out
    assert summary["policy_digest"] == UNDISTURBED
