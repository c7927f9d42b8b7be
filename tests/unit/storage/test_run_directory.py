"""A run directory: its config, its lock, and the files in it."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reval_core.atomic_files import publish_json
from reval_core.config import Config
from reval_core.errors import CorruptData, InputError
from reval_core.storage.run_directory import (
    STAGES,
    Attempt,
    RunDirectory,
    existing_run,
    wall_seconds,
)
from reval_core.storage.tables import Manifest

ROOT = Path(__file__).parents[3]

VALUES: dict[str, Any] = {
    "rounds": 3,
    "model": {"tiny": {"width": 16, "heads": 2}},
    "problems": {"train": {"arithmetic": {"digits": 1}}, "held_out": {"arithmetic": {"digits": 1}}},
    "rollouts": {"prompts": 4, "samples": 2, "max_tokens": 4},
    "objective": {"kind": "reval", "beta": 0.1},
    "replay": {"capacity": 16},
    "learner": {"updates": 1, "lr": 1e-3},
}

HOLD_THE_LOCK = """if True:
    import sys, time
    from pathlib import Path
    from reval_core.storage.run_directory import RunDirectory
    with RunDirectory(Path(sys.argv[1])).lock():
        print("held", flush=True)
        time.sleep(60)
"""

QUERY_THE_LOCK = """if True:
    import fcntl, sys, time
    with open(sys.argv[1]) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        print("held", flush=True)
        time.sleep(0.1)
"""


def config(**changes: Any) -> Config:
    return Config.model_validate(VALUES | changes)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "some run")


def started(program: str, argument: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, str(argument)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def holder(directory: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    yield from started(HOLD_THE_LOCK, directory.path)


def test_creating_the_object_changes_nothing_on_disk(directory: RunDirectory) -> None:
    directory.check(config())
    assert (directory.holder(), directory.manifests(), directory.free_bytes() > 0) == (None, [], True)
    assert not directory.path.exists()


def test_a_directory_can_be_reopened_with_the_same_config(directory: RunDirectory) -> None:
    directory.open(config())
    directory.open(config())
    assert Config.model_validate(yaml.safe_load(directory.config.read_text(encoding="utf-8"))) == config()


@pytest.mark.parametrize("rounds", [4, 2])
def test_the_number_of_rounds_may_change(directory: RunDirectory, rounds: int) -> None:
    directory.open(config())
    directory.open(config(rounds=rounds))
    assert yaml.safe_load(directory.config.read_text(encoding="utf-8"))["rounds"] == rounds


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"learner": {"updates": 1, "lr": 2e-3}}, "learner.lr"),
        ({"collapse": {"rounds": 9}}, "collapse.rounds"),
        ({"objective": {"kind": "tbrm", "beta": 0.1}}, "objective.kind"),
        ({"model": {"path": "org/name"}}, "model.path, model.tiny"),
        ({"verification": {"methods": ["boxed"]}}, "verification.methods"),
        ({"reference": {"reset_every": 5}, "rounds": 9}, "reference.reset_every"),
    ],
)
def test_another_config_is_refused_naming_what_differs(
    directory: RunDirectory, changes: dict[str, Any], named: str
) -> None:
    directory.open(config())
    before = directory.config.read_bytes()
    with pytest.raises(InputError) as caught:
        directory.open(config(**changes))
    message = str(caught.value)
    assert message.startswith(f"{directory.config}: made with another config ({named} differ); ")
    assert "\n" not in message
    assert directory.config.read_bytes() == before


def test_a_config_with_every_kind_of_text_is_recognised(directory: RunDirectory) -> None:
    prompt = {"user": "a: 'b' \"c\" # {problem}\n\t\u2028\x85é𝔸", "chat": True, "system": " "}
    settings = config(problems={**VALUES["problems"], "prompt": prompt})
    directory.open(settings)
    directory.open(settings)


def test_a_second_process_is_refused_naming_the_first(
    directory: RunDirectory, holder: subprocess.Popen[str]
) -> None:
    assert directory.holder() == f"{holder.pid} on {platform.node()}"
    with pytest.raises(InputError, match=f"process {holder.pid} on .* is running it"), directory.lock():
        pass
    assert directory.holder() == f"{holder.pid} on {platform.node()}"


def test_a_lock_is_released_when_its_holder_is_killed(
    directory: RunDirectory, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert directory.holder() is None
    with directory.lock():
        assert directory.holder() == f"{os.getpid()} on {platform.node()}"
    assert directory.holder() is None


def test_a_lock_is_released_by_an_error_and_can_be_taken_again(directory: RunDirectory) -> None:
    with pytest.raises(ZeroDivisionError), directory.lock():
        _ = 1 / 0
    with (
        directory.lock(),
        pytest.raises(InputError, match=f"process {os.getpid()} "),
        RunDirectory(directory.path).lock(),
    ):
        pass


def test_a_reader_does_not_take_the_lock(directory: RunDirectory) -> None:
    with directory.lock():
        pass
    for _ in started(QUERY_THE_LOCK, directory.path / "lock"):
        with directory.lock():
            assert directory.holder() == f"{os.getpid()} on {platform.node()}"


def test_wall_time_is_added_up_over_attempts(directory: RunDirectory) -> None:
    assert wall_seconds(directory) == 0
    for number, (start, end) in enumerate([(100.0, 110.0), (500.0, 502.5)], start=1):
        publish_json(
            directory.attempts / f"{number:04d}.json", {"started_at": start, "last_seen_at": end, "pid": 1}
        )
    assert wall_seconds(directory) == 12.5


def test_an_attempt_lasts_from_its_start_to_its_last_touch(directory: RunDirectory) -> None:
    first = Attempt(directory)
    assert wall_seconds(directory) >= 0
    time.sleep(0.05)
    first.touch()
    after_the_first = wall_seconds(directory)
    assert after_the_first >= 0.05
    Attempt(directory)
    assert wall_seconds(directory) >= after_the_first
    assert len(list(directory.attempts.iterdir())) == 2


def test_manifests_are_ordered_by_round_and_stage(directory: RunDirectory) -> None:
    published = [Manifest(stage, round, f"{stage} {round}") for round in (0, 1, 2) for stage in STAGES]
    for manifest in published[::-1]:
        directory.publish(manifest)
    assert directory.manifests() == published
    assert directory.manifest("rollouts", 2) == Manifest("rollouts", 2, "rollouts 2")
    assert directory.manifest("rollouts", 3) is None


def test_a_republished_manifest_replaces_the_old_one(directory: RunDirectory) -> None:
    directory.publish(Manifest("learning", 1, "old"))
    directory.publish(Manifest("learning", 1, "new"))
    assert directory.manifests() == [Manifest("learning", 1, "new")]


def test_a_partly_written_manifest_is_ignored(directory: RunDirectory) -> None:
    path = directory.manifest_path("learning", 1)
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".partial").write_text('{"stage": ')
    assert directory.manifests() == []


def test_a_corrupt_manifest_is_named(directory: RunDirectory) -> None:
    path = directory.manifest_path("learning", 1)
    path.parent.mkdir(parents=True)
    path.write_text('{"stage": ')
    with pytest.raises(CorruptData, match=r"round=00001/learning\.json: is not a manifest"):
        directory.manifests()


def test_rows_that_a_stage_has_not_published_are_missing_and_named(directory: RunDirectory) -> None:
    with pytest.raises(CorruptData, match=r"facts/round=00002/sampling\.json: is missing$"):
        directory.rows("sampling", 2, "draws")


def test_shards_tables_and_checkpoints_of_a_round_have_separate_paths(directory: RunDirectory) -> None:
    places = [
        directory.shard(1, 0),
        directory.shard(1, 1),
        directory.shard(11, 1),
        directory.facts(1, "draws"),
        directory.facts(11, "draws"),
        str(directory.checkpoint(1)),
        str(directory.checkpoint(11)),
        *(str(directory.manifest_path(stage, 1)) for stage in STAGES),
    ]
    assert len(set(places)) == len(places)


def test_a_directory_without_a_config_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory"):
        existing_run(tmp_path)
    with pytest.raises(InputError, match="is not a run directory"):
        existing_run(tmp_path / "none")


def test_an_existing_run_is_found(directory: RunDirectory) -> None:
    directory.open(config())
    assert existing_run(directory.path).name == "some run"
