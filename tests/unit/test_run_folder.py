"""A run's folder: whose config it is, who may write to it, and what lies in it."""

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

from reval_core.config import Config
from reval_core.errors import Damaged, InputError
from reval_core.facts import Manifest
from reval_core.files import publish_json
from reval_core.run_folder import (
    STAGES,
    Attempt,
    RunFolder,
    existing_run,
    wall_seconds,
)

ROOT = Path(__file__).parents[2]

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
    from reval_core.run_folder import RunFolder
    with RunFolder(Path(sys.argv[1])).lock():
        print("held", flush=True)
        time.sleep(60)
"""

LOOK_AT_THE_LOCK = """if True:
    import fcntl, sys, time
    with open(sys.argv[1]) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        print("held", flush=True)
        time.sleep(0.1)
"""


def config(**changes: Any) -> Config:
    return Config.model_validate(VALUES | changes)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "some run")


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
def holder(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs the run."""
    yield from started(HOLD_THE_LOCK, folder.path)


def test_making_the_object_touches_nothing(folder: RunFolder) -> None:
    folder.check(config())
    assert (folder.holder(), folder.manifests(), folder.free_bytes() > 0) == (None, [], True)
    assert not folder.path.exists()


def test_a_folder_opens_again_under_its_config(folder: RunFolder) -> None:
    folder.open(config())
    folder.open(config())
    assert Config.model_validate(yaml.safe_load(folder.config.read_text(encoding="utf-8"))) == config()


@pytest.mark.parametrize("rounds", [4, 2])
def test_the_number_of_rounds_may_change(folder: RunFolder, rounds: int) -> None:
    folder.open(config())
    folder.open(config(rounds=rounds))
    assert yaml.safe_load(folder.config.read_text(encoding="utf-8"))["rounds"] == rounds


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
    folder: RunFolder, changes: dict[str, Any], named: str
) -> None:
    folder.open(config())
    before = folder.config.read_bytes()
    with pytest.raises(InputError) as caught:
        folder.open(config(**changes))
    message = str(caught.value)
    assert message.startswith(f"{folder.config}: made by another config ({named} differ); ")
    assert "\n" not in message
    assert folder.config.read_bytes() == before


def test_a_config_with_every_kind_of_text_is_known_again(folder: RunFolder) -> None:
    prompt = {"user": "a: 'b' \"c\" # {problem}\n\t\u2028\x85é𝔸", "chat": True, "system": " "}
    settings = config(problems={**VALUES["problems"], "prompt": prompt})
    folder.open(settings)
    folder.open(settings)


def test_a_second_process_is_refused_naming_the_first(folder: RunFolder, holder: subprocess.Popen[str]) -> None:
    assert folder.holder() == f"{holder.pid} on {platform.node()}"
    with pytest.raises(InputError, match=f"process {holder.pid} on .* is running it"), folder.lock():
        pass
    assert folder.holder() == f"{holder.pid} on {platform.node()}"


def test_a_lock_goes_with_its_holder_even_if_that_is_killed(
    folder: RunFolder, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert folder.holder() is None
    with folder.lock():
        assert folder.holder() == f"{os.getpid()} on {platform.node()}"
    assert folder.holder() is None


def test_a_lock_is_freed_by_an_error_and_taken_again(folder: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), folder.lock():
        _ = 1 / 0
    with folder.lock(), pytest.raises(InputError, match=f"process {os.getpid()} "), RunFolder(folder.path).lock():
        pass


def test_somebody_who_only_looks_keeps_nobody_out(folder: RunFolder) -> None:
    with folder.lock():
        pass
    for _ in started(LOOK_AT_THE_LOCK, folder.path / "lock"):
        with folder.lock():
            assert folder.holder() == f"{os.getpid()} on {platform.node()}"


def test_wall_time_is_added_up_over_attempts(folder: RunFolder) -> None:
    assert wall_seconds(folder) == 0
    for number, (start, end) in enumerate([(100.0, 110.0), (500.0, 502.5)], start=1):
        publish_json(folder.attempts / f"{number:04d}.json", {"started_at": start, "last_seen_at": end, "pid": 1})
    assert wall_seconds(folder) == 12.5


def test_an_attempt_lasts_from_its_start_to_its_last_touch(folder: RunFolder) -> None:
    first = Attempt(folder)
    assert wall_seconds(folder) >= 0
    time.sleep(0.05)
    first.touch()
    after_the_first = wall_seconds(folder)
    assert after_the_first >= 0.05
    Attempt(folder)
    assert wall_seconds(folder) >= after_the_first
    assert len(list(folder.attempts.iterdir())) == 2


def test_manifests_come_by_round_and_in_the_order_of_stages(folder: RunFolder) -> None:
    published = [Manifest(stage, round, f"{stage} {round}") for round in (0, 1, 2) for stage in STAGES]
    for manifest in published[::-1]:
        folder.publish(manifest)
    assert folder.manifests() == published
    assert folder.manifest("rollouts", 2) == Manifest("rollouts", 2, "rollouts 2")
    assert folder.manifest("rollouts", 3) is None


def test_a_manifest_published_again_takes_the_place_of_the_old_one(folder: RunFolder) -> None:
    folder.publish(Manifest("learning", 1, "old"))
    folder.publish(Manifest("learning", 1, "new"))
    assert folder.manifests() == [Manifest("learning", 1, "new")]


def test_a_half_written_manifest_is_none(folder: RunFolder) -> None:
    path = folder.manifest_path("learning", 1)
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".partial").write_text('{"stage": ')
    assert folder.manifests() == []


def test_a_damaged_manifest_is_named(folder: RunFolder) -> None:
    path = folder.manifest_path("learning", 1)
    path.parent.mkdir(parents=True)
    path.write_text('{"stage": ')
    with pytest.raises(Damaged, match=r"round=00001/learning\.json: is no manifest"):
        folder.manifests()


def test_shards_facts_and_checkpoints_of_a_round_lie_apart(folder: RunFolder) -> None:
    places = [
        folder.shard(1, 0),
        folder.shard(1, 1),
        folder.shard(11, 1),
        folder.facts(1, "draws"),
        folder.facts(11, "draws"),
        str(folder.checkpoint(1)),
        str(folder.checkpoint(11)),
        *(str(folder.manifest_path(stage, 1)) for stage in STAGES),
    ]
    assert len(set(places)) == len(places)


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        existing_run(tmp_path)
    with pytest.raises(InputError, match="is no run folder"):
        existing_run(tmp_path / "none")


def test_an_existing_run_is_found(folder: RunFolder) -> None:
    folder.open(config())
    assert existing_run(folder.path).name == "some run"
