"""`kill -9` at seeded moments of every kind: the run goes on and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reval_core.run_folder import RunFolder
from reval_core.summary import summarise
from tests.integration.test_training import tables
from tests.runs import run, small_config

# How many of each event an undisturbed small run has, about: moments are drawn from the first so many.
EVENTS = {"publish": 60, "published": 60, "generate": 12, "update": 6}


def start(path: Path, event: str, number: int) -> int:
    """Run the child and return its exit status: −9 if it was killed, 0 if it came to the end."""
    command = [sys.executable, "-m", "tests.faults.child", str(path), event, str(number)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def shards(path: Path) -> dict[str, int]:
    """When each finished shard was written (its note is written after it)."""
    notes = path.glob("rollouts/*/shard-*.json")
    return {note.stem + note.parent.name: note.with_suffix(".parquet").stat().st_mtime_ns for note in notes}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    run(path, small_config(reference__reset_every=2))
    return path


@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_five_times_ends_as_one_that_was_not(undisturbed, tmp_path, seed):
    path, rng = tmp_path / "hurt", random.Random(seed)
    kills, finished = 0, {}
    for event in ["publish", "generate", "update", "published", "publish"]:
        status = start(path, event, rng.randint(1, EVENTS[event] // 4))
        kills += status == -signal.SIGKILL
        now = shards(path)
        assert {name: now[name] for name in finished} == finished, "a finished shard was generated again"
        finished = now
    assert start(path, "never", 0) == 0
    assert kills >= 4, "the moments were chosen too late in the run to test anything"
    assert summarise(RunFolder(path))["policy_digest"] == summarise(RunFolder(undisturbed))["policy_digest"]
    assert tables(RunFolder(path)) == tables(RunFolder(undisturbed))


def test_the_comparison_notices_a_run_that_learned_something_else(undisturbed, tmp_path):
    run(tmp_path / "other", small_config(reference__reset_every=2, learner__lr=1.1e-3))
    assert (
        summarise(RunFolder(tmp_path / "other"))["policy_digest"]
        != summarise(RunFolder(undisturbed))["policy_digest"]
    )


def test_nothing_half_written_has_a_name(undisturbed):
    assert not list(undisturbed.rglob("*.partial"))
