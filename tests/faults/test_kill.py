"""`kill -9` at moments of every stage: the same command again resumes, and ends like an uninterrupted run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reval_core.config import Config
from reval_core.maintenance.check import check_run
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory
from tests.faults.zygote import BEYOND, CONFIG, DYNAMIC, HALF
from tests.integration.test_training import tables

ROOT = Path(__file__).parents[2]
KILLS = 100
SHORT = 5

Start = Callable[..., int]
"""(path, config=…, kill=…, trace=…, tamper=…) -> the exit status of a run in a process of its own."""


@dataclass(frozen=True)
class Undisturbed:
    """An uninterrupted run, and the moments that it passed."""

    path: Path
    moments: list[str]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    command = [sys.executable, "-m", "tests.faults.zygote"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zygote:
        assert zygote.stdin is not None
        assert zygote.stdout is not None

        def ask(path: Path, **request: object) -> int:
            zygote.stdin.write(json.dumps({"path": str(path), **request}) + "\n")
            zygote.stdin.flush()
            return int(zygote.stdout.readline())

        yield ask
        zygote.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    directory = tmp_path_factory.mktemp("undisturbed")
    assert start(directory / "run", trace=str(directory / "moments")) == 0
    return Undisturbed(directory / "run", (directory / "moments").read_text().splitlines())


@pytest.fixture(scope="module")
def beyond(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run in which K, the reset and β depend on its data."""
    directory = tmp_path_factory.mktemp("beyond")
    assert start(directory / "run", config="beyond", trace=str(directory / "moments")) == 0
    return Undisturbed(directory / "run", (directory / "moments").read_text().splitlines())


@pytest.fixture(scope="module")
def dynamic(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run with dynamic sampling and an averaged reference."""
    directory = tmp_path_factory.mktemp("dynamic")
    assert start(directory / "run", config="dynamic", trace=str(directory / "moments")) == 0
    return Undisturbed(directory / "run", (directory / "moments").read_text().splitlines())


@pytest.fixture(scope="module")
def half(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run in bfloat16."""
    directory = tmp_path_factory.mktemp("half")
    assert start(directory / "run", config="half", trace=str(directory / "moments")) == 0
    return Undisturbed(directory / "run", (directory / "moments").read_text().splitlines())


def chosen(moments: list[str], number: int) -> str:
    """The moment of fault number `number`: cycles through the stages, with a seeded moment in each."""
    stages = sorted({moment.split("/")[0] for moment in moments})
    stage = stages[number % len(stages)]
    return random.Random(number).choice([moment for moment in moments if moment.split("/")[0] == stage])


def shards(path: Path) -> dict[str, int]:
    """The modification time of each finished shard (its record is written after it)."""
    notes = path.glob("rollouts/*/shard-*.json")
    return {note.stem + note.parent.name: note.with_suffix(".parquet").stat().st_mtime_ns for note in notes}


def assert_same_end(path: Path, undisturbed: Undisturbed, config: Config = CONFIG) -> None:
    """Compare the weights, every row of every table, and everything that `reval check` checks."""
    killed, whole = RunDirectory(path), RunDirectory(undisturbed.path)
    assert summarise(killed)["policy_digest"] == summarise(whole)["policy_digest"]
    assert tables(killed) == tables(whole)
    results = list(check_run(killed, config))
    assert [result.part for result in results] == ["files", "rows", "database", "replay"]
    assert [problem for result in results for problem in result.problems] == []
    assert not list(path.rglob("*.partial"))
    assert not list(path.rglob("*.damaged"))


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.full] * (number >= SHORT)) for number in range(KILLS)]
)
def test_a_killed_run_ends_like_an_uninterrupted_one(start, undisturbed, tmp_path, number):
    path, moment = tmp_path / "run", chosen(undisturbed.moments, number)
    assert start(path, kill=moment) == -9, f"{moment} was not reached"
    finished = shards(path)
    assert start(path) == 0, moment
    assert {name: shards(path)[name] for name in finished} == finished, (
        f"{moment}: a finished shard was regenerated"
    )
    assert_same_end(path, undisturbed)


@pytest.mark.parametrize(
    "stage",
    [
        *("consistency", "learning", "reference_reset"),
        *(pytest.param(stage, marks=pytest.mark.full) for stage in ("rollouts", "sampling", "checkpoint")),
    ],
)
def test_a_killed_run_with_adaptive_settings_ends_like_an_uninterrupted_one(start, beyond, tmp_path, stage):
    path, rng = tmp_path / "run", random.Random(stage)
    moment = rng.choice([moment for moment in beyond.moments if moment.split("/")[0] == stage])
    assert start(path, config="beyond", kill=moment) == -9, f"{moment} was not reached"
    assert start(path, config="beyond") == 0, moment
    assert_same_end(path, beyond, BEYOND)


@pytest.mark.parametrize("number", [0, 1, 2, *(pytest.param(one, marks=pytest.mark.full) for one in range(3, 12))])
def test_a_run_killed_during_dynamic_sampling_or_averaging_ends_like_an_uninterrupted_one(
    start, dynamic, tmp_path, number
):
    path = tmp_path / "run"
    stage = ("rollouts", "verification", "reference_reset")[number % 3]
    moment = random.Random(number).choice([one for one in dynamic.moments if one.split("/")[0] == stage])
    assert start(path, config="dynamic", kill=moment) == -9, f"{moment} was not reached"
    finished = shards(path)
    assert start(path, config="dynamic") == 0, moment
    assert {name: shards(path)[name] for name in finished} == finished, (
        f"{moment}: a finished shard was regenerated"
    )
    assert_same_end(path, dynamic, DYNAMIC)


@pytest.mark.parametrize(
    "stage",
    [
        *("learning", "reference_reset"),
        *(
            pytest.param(stage, marks=pytest.mark.full)
            for stage in (
                *("warm_start", "rollouts", "verification", "consistency"),
                *("sampling", "evaluation", "checkpoint", "recording"),
            )
        ),
    ],
)
def test_a_killed_run_in_bfloat16_ends_like_an_uninterrupted_one(start, half, tmp_path, stage):
    path, rng = tmp_path / "run", random.Random(stage)
    moment = rng.choice([moment for moment in half.moments if moment.split("/")[0] == stage])
    assert start(path, config="half", kill=moment) == -9, f"{moment} was not reached"
    assert start(path, config="half") == 0, moment
    assert_same_end(path, half, HALF)


def test_a_run_killed_three_times_ends_like_an_uninterrupted_one(start, undisturbed, tmp_path):
    path, rng = tmp_path / "run", random.Random(1)
    for round in (1, 2, 3):
        later = [moment for moment in undisturbed.moments if moment.split("/")[1] == str(round)]
        assert start(path, kill=rng.choice(later)) == -9
    assert start(path) == 0
    assert_same_end(path, undisturbed)


def test_the_comparison_detects_a_single_weight(start, undisturbed, tmp_path):
    """The comparison is not of a run with itself: a run with different weights is detected."""
    path = tmp_path / "run"
    assert start(path, kill="learning/1/after step/1") == -9
    assert start(path, tamper=2) == 0
    with pytest.raises(AssertionError):
        assert_same_end(path, undisturbed)
    assert (
        summarise(RunDirectory(path))["policy_digest"] != summarise(RunDirectory(undisturbed.path))["policy_digest"]
    )


def test_every_stage_is_struck(undisturbed):
    struck = {chosen(undisturbed.moments, number).split("/")[0] for number in range(KILLS)}
    assert struck == {moment.split("/")[0] for moment in undisturbed.moments}
    assert {"warm_start", "rollouts", "verification", "consistency", "sampling", "learning"} <= struck
    assert {"evaluation", "checkpoint", "reference_reset", "recording"} <= struck


def test_partial_files_are_never_published(undisturbed):
    assert not list(undisturbed.path.rglob("*.partial"))
