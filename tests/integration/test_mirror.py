"""A run with a mirror, and `reval restore`, as on several hosts: each directory is the disk of one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from reval.flows.preparation import prepare
from reval.flows.rounds import train_rounds
from reval_core.config import Config
from reval_core.errors import InputError, RunStopped
from reval_core.maintenance.check import check_run
from reval_core.maintenance.prune import prune
from reval_core.maintenance.restore import read_mirror
from reval_core.pipeline.run_context import open_run_context
from reval_core.report.summary import summarise
from reval_core.storage.lease import Lease, read_lease
from reval_core.storage.object_store import ObjectStore
from reval_core.storage.published import published_files
from reval_core.storage.run_directory import RunDirectory
from tests.commands import Reval, command
from tests.runs import run, small_config
from tests.stores import s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def reval(capsys, monkeypatch) -> Reval:
    return command(capsys, monkeypatch)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory) -> Path:
    """A directory with a finished run `run` and its mirror `mirror`. Tests copy it, or only read."""
    base = tmp_path_factory.mktemp("mirrored")
    run(base / "run", small_config(storage__mirror=f"file://{base}/mirror"))
    return base


@pytest.fixture
def lost(mirrored, tmp_path) -> str:
    """The URL of a copy of the mirror, whose run is nowhere else."""
    shutil.copytree(mirrored / "mirror", tmp_path / "mirror")
    return f"file://{tmp_path}/mirror"


def test_a_mirror_does_not_change_a_run(mirrored, tmp_path):
    run(tmp_path / "plain", small_config())
    digests = [summarise(RunDirectory(path))["policy_digest"] for path in (mirrored / "run", tmp_path / "plain")]
    assert digests[0] == digests[1]


def test_a_finished_run_is_mirrored_whole(mirrored):
    entries = read_mirror(f"file://{mirrored}/mirror").index.entries
    assert set(entries) == set(published_files(mirrored / "run"))
    state = read_lease(ObjectStore(f"file://{mirrored}/mirror"))
    assert state is not None
    assert state.released


def test_a_restored_run_is_intact_extended_and_mirrored_on(reval, lost, tmp_path, mirrored):
    restored = tmp_path / "b" / "run"
    answer = reval("restore", lost, restored)
    assert answer.code == 0, answer.err
    assert f"{restored}: restored: 3 rounds" in answer.out
    assert f"resume it with: reval resume {restored}" in answer.out
    directory = RunDirectory(restored)
    config = small_config(storage__mirror=lost)
    assert not any(one.problems for one in check_run(directory, config))
    assert yaml.safe_load(directory.config.read_text())["storage"]["mirror"] == lost
    before = {path: path.stat().st_mtime_ns for path in restored.glob("rollouts/*/shard-*.parquet")}
    summary = run(restored, config.model_copy(update={"rounds": 4}))
    run(tmp_path / "whole", small_config(rounds=4))
    assert summary is not None
    assert summary["policy_digest"] == summarise(RunDirectory(tmp_path / "whole"))["policy_digest"]
    assert {path: path.stat().st_mtime_ns for path in before} == before, "no shard was generated twice"
    assert read_mirror(lost).rounds == 4


def test_a_dry_run_shows_what_would_be_restored_and_writes_nothing(reval, lost, tmp_path):
    before = ObjectStore(lost).names()
    found = json.loads(reval("restore", lost, tmp_path / "new", "--dry-run", "--json").out)
    assert (found["rounds"], found["epoch"], found["restored"]) == (3, 1, False)
    assert found["files"] == len(read_mirror(lost).index.entries)
    assert not (tmp_path / "new").exists()
    assert ObjectStore(lost).names() == before


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_restore_that_cannot_work_is_refused_without_side_effects(reval, lost, tmp_path, dry):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    before = ObjectStore(lost).names()
    for url, path, message in [
        (lost, full, "contains notes.txt, not created by reval"),
        (f"file://{tmp_path}/empty", tmp_path / "new", "contains no mirrored run"),
        ("s3c://bucket/run", tmp_path / "new", "s3c"),
        (lost, "s3://bucket/run", "only local paths are supported"),
    ]:
        answer = reval("restore", url, path, *dry)
        assert answer.code == 2, message
        assert message in answer.err
        assert answer.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert ObjectStore(lost).names() == before


def test_a_corrupt_mirror_is_not_restored(reval, lost, tmp_path):
    place = tmp_path / "mirror" / read_mirror(lost).index.entries["rollouts/round=00002/shard-000.parquet"].object
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    answer = reval("restore", lost, tmp_path / "new")
    assert answer.code == 1
    assert "shard-000.parquet: differs from what was copied; the mirror is corrupt" in answer.err
    with pytest.raises(InputError, match=r"lacks .* records that its mirror .* has; restore it with reval restore"):
        run(tmp_path / "new", small_config(storage__mirror=lost))


def test_an_interrupted_restore_is_completed_by_the_next(reval, lost, tmp_path, monkeypatch):
    calls = []

    def broken(store: ObjectStore, name: str, path: Path) -> None:
        calls.append(name)
        if len(calls) == 40:
            raise KeyboardInterrupt
        shutil.copyfile(tmp_path / "mirror" / name, path)

    monkeypatch.setattr(ObjectStore, "download", broken)
    assert reval("restore", lost, tmp_path / "new").code == 130
    fetched = len(calls)
    answer = reval("restore", lost, tmp_path / "new")
    assert answer.code == 0, answer.err
    assert len(calls) < fetched + len(read_mirror(lost).index.entries) - 20, "what was there is kept"
    assert run(tmp_path / "new", small_config(storage__mirror=lost)) is not None
    answer = reval("restore", lost, tmp_path / "new")
    assert "is this run already; resume it with reval resume" in answer.err


def test_a_run_cannot_write_to_the_mirror_of_another(lost, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_config(storage__mirror=lost).model_dump(mode="json", exclude_none=True)))
    before = ObjectStore(lost).names()
    with pytest.raises(InputError, match=r"is the mirror of another run, last written by process .* reval restore"):
        prepare(config, (), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert ObjectStore(lost).names() == before


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mirror", "is not the URL of an object store"),
        ("s3://key:secret@bucket/run", "contains credentials"),
        ("file://relative/path", "is not an absolute path"),
        ("simplecache::s3://bucket/run", "is not the URL|must be the URL"),
        ("nothing://bucket/run", "cannot be opened"),
        ("file://{base}/run/mirror", "overlaps the run directory"),
        ("file://{base}", "overlaps the run directory"),
    ],
)
def test_an_unusable_mirror_is_refused_at_preparation(tmp_path, url, message):
    values = small_config().model_dump(mode="json", exclude_none=True)
    values["storage"] = {"mirror": url.format(base=tmp_path)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "config.yaml", (), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_bucket_that_does_not_exist_is_refused_at_preparation(bucket, tmp_path):
    values = small_config(storage__mirror="s3://no-such-bucket/run").model_dump(mode="json", exclude_none=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"storage.mirror: cannot be reached: .*bucket does not exist"):
        prepare(tmp_path / "config.yaml", (), tmp_path / "run")


def run_until_another_host_restores_it(reval: Reval, path: Path, config: Config, other: Path) -> None:
    """Run a run. After its first round, another host tries to restore it, and then does so with `--take-over`."""
    url = str(config.storage.mirror)
    with open_run_context(RunDirectory(path), config) as context:
        assert context.mirror is not None
        for number in train_rounds(context):
            if number != 1:
                continue
            while context.mirror.lag.seconds:
                time.sleep(0.01)
            assert read_mirror(url).rounds == 1
            refused = reval("restore", url, other)
            assert refused.code == 2
            assert "holds the lease, renewed" in refused.err
            assert "or restore it with --take-over" in refused.err
            assert not other.exists()
            answer = reval("restore", url, other, "--take-over")
            assert answer.code == 0, answer.err
        context.mirror._lease.renew()  # the small run may be faster than its heartbeat
        context.tick(0, 1)


def test_while_a_run_is_alive_another_host_is_refused_and_with_take_over_the_run_stops(reval, bucket, tmp_path):
    url = f"{bucket}/{uuid.uuid4()}"
    config = small_config(storage={"mirror": url, "lease_seconds": 1})
    first, other = tmp_path / "a/run", tmp_path / "b/run"
    with pytest.raises(RunStopped, match=rf"{first}: process .*{other}\) has taken the lease of this run, epoch 2"):
        run_until_another_host_restores_it(reval, first, config, other)
    assert set(read_mirror(url).index.entries) - {"mlflow.json"} <= set(published_files(other))
    with pytest.raises(InputError, match="has taken the lease of this run, epoch 2; resume it there"):
        run(first, config)
    assert run(other, config) is not None


def test_a_killed_process_resumes_in_its_own_directory_at_once(tmp_path):
    url = f"file://{tmp_path}/mirror"
    config = small_config(storage__mirror=url, rounds=1)
    program = (
        "import os, sys; from pathlib import Path; from reval_core.storage.lease import *; "
        "from reval_core.storage.object_store import ObjectStore; "
        "Path(sys.argv[2]).mkdir(); Lease.take(ObjectStore(sys.argv[1]), Path(sys.argv[2]), 600, None); "
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, url, str(tmp_path / "run")], check=False)
    assert killed.returncode == -signal.SIGKILL
    state = read_lease(ObjectStore(url))
    assert state is not None
    assert state.expires_in > 500
    assert run(tmp_path / "run", config) is not None


def test_a_mirror_can_be_added_when_a_run_is_resumed(tmp_path):
    run(tmp_path / "run", small_config(), until=1)
    run(tmp_path / "run", small_config(storage__mirror=f"file://{tmp_path}/mirror"))
    entries = read_mirror(f"file://{tmp_path}/mirror").index.entries
    assert set(entries) == set(published_files(tmp_path / "run"))


def test_a_pruned_run_is_restored_pruned(reval, mirrored, tmp_path):
    shutil.copytree(mirrored / "run", tmp_path / "run")
    (tmp_path / "run/lease.json").unlink()
    config = small_config(storage__mirror=f"file://{tmp_path}/mirror", rounds=4)
    summary = run(tmp_path / "run", config)
    directory = RunDirectory(tmp_path / "run")
    directory.summary.write_text(json.dumps(summary))
    with directory.lock():
        prune(directory, config)
    assert directory.pruned_to() > 0
    run(tmp_path / "run", config)  # copies what pruning has changed
    entries = read_mirror(f"file://{tmp_path}/mirror").index.entries
    assert set(entries) == set(published_files(directory.path))
    answer = reval("restore", f"file://{tmp_path}/mirror", tmp_path / "new")
    assert answer.code == 0, answer.err
    assert not any(one.problems for one in check_run(RunDirectory(tmp_path / "new"), config))


def test_a_lease_that_is_lost_during_a_restore_stops_it(lost, tmp_path, reval, monkeypatch):
    take = Lease.take.__func__  # type: ignore[attr-defined]
    (tmp_path / "third").mkdir()

    def overtaken(cls, store, directory, seconds, state):
        lease = take(cls, store, directory, seconds, state)
        take(cls, store, tmp_path / "third", seconds, read_lease(store))
        lease.renew()
        return lease

    monkeypatch.setattr(Lease, "take", classmethod(overtaken))
    answer = reval("restore", lost, tmp_path / "new")
    assert answer.code == 1
    assert "has taken the lease of this run" in answer.err
