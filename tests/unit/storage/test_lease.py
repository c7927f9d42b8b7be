"""The lease on a mirror: one holder at a time, and a later epoch wins."""

from __future__ import annotations

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest

from reval_core.errors import InputError, RunStopped
from reval_core.storage.lease import Lease, check_lease, read_lease
from reval_core.storage.object_store import ObjectStore, StoreError
from tests.stores import dying_store, s3_server


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as url:
        yield url


@pytest.fixture(params=["file", "memory", "s3"])
def store(request, tmp_path) -> ObjectStore:
    if request.param == "s3":
        return ObjectStore(f"{request.getfixturevalue('bucket')}/{uuid.uuid4()}")
    root = tmp_path / "mirror" if request.param == "file" else uuid.uuid4()
    return ObjectStore(f"file://{root}" if request.param == "file" else f"memory://{root}")


def take(store: ObjectStore, directory: Path, seconds: float = 60) -> Lease:
    directory.mkdir(exist_ok=True)
    return Lease.take(store, directory, seconds, check_lease(store, directory))


def test_the_first_lease_has_epoch_1_and_the_next_attempt_of_the_same_directory_the_next(store, tmp_path):
    assert check_lease(store, tmp_path / "run") is None
    assert take(store, tmp_path / "run").holder.epoch == 1
    assert take(store, tmp_path / "run").holder.epoch == 2
    state = read_lease(store)
    assert state is not None
    assert state.holder.epoch == 2
    assert 59 < state.expires_in <= 60


def test_of_many_processes_that_take_an_epoch_one_gets_it(store, tmp_path):
    directories = [tmp_path / str(number) for number in range(8)]
    for directory in directories:
        directory.mkdir()

    def attempt(directory: Path) -> bool:
        try:
            Lease.take(store, directory, 60, None)
        except InputError as error:
            assert "took the lease just now" in str(error)  # noqa: PT017
            return False
        return True

    with ThreadPoolExecutor(len(directories)) as pool:
        assert sum(pool.map(attempt, directories)) == 1


def test_a_directory_that_never_held_the_lease_is_refused(store, tmp_path):
    take(store, tmp_path / "run")
    with pytest.raises(InputError, match="is the mirror of another run, last written by process"):
        check_lease(store, tmp_path / "other")


def test_a_copy_of_a_directory_waits_until_the_lease_expires(store, tmp_path):
    lease = take(store, tmp_path / "run")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "lease.json").write_bytes((tmp_path / "run/lease.json").read_bytes())
    with pytest.raises(InputError, match=r"holds the lease, renewed 0 s ago; wait \d+ s"):
        check_lease(store, copy)
    with patch("time.time", return_value=time.time() + 61):
        assert check_lease(store, copy) is not None
    with lease:
        pass
    assert check_lease(store, copy) is not None, "released"


def test_a_holder_learns_that_it_lost_the_lease_and_names_who_took_it(store, tmp_path):
    first = take(store, tmp_path / "run")
    (tmp_path / "new").mkdir()
    second = Lease.take(store, tmp_path / "new", 60, read_lease(store))
    first.renew()
    second.renew()
    second.check()
    with pytest.raises(
        RunStopped, match=rf"run: process .*{tmp_path}/new\) has taken the lease of this run, epoch 2; resume it"
    ):
        first.check()
    with pytest.raises(InputError, match="has taken the lease of this run"):
        check_lease(store, tmp_path / "run")


def test_heartbeats_renew_the_lease_and_notice_the_loss(tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    with take(store, tmp_path / "run", seconds=0.3) as lease:
        before = read_lease(store)
        while (now := read_lease(store)) == before:
            time.sleep(0.01)
        assert now is not None
        assert before is not None
        assert now.renewed_at > before.renewed_at
        (tmp_path / "new").mkdir()
        Lease.take(store, tmp_path / "new", 60, now)
        while lease.lost_to is None:
            time.sleep(0.01)
    state = read_lease(store)
    assert state is not None
    assert (state.holder.epoch, state.released) == (2, False), "whoever lost the lease does not release it"


def test_a_loser_of_one_epoch_in_a_store_without_exclusive_creation_notices(tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    lease = take(store, tmp_path / "run")
    record = json.loads((tmp_path / "mirror/lease/00001.json").read_text())
    (tmp_path / "mirror/lease/00001.json").write_text(json.dumps({**record, "token": "another", "host": "b"}))
    lease.renew()
    with pytest.raises(RunStopped, match="on b"):
        lease.check()


def test_a_process_killed_right_after_it_took_an_epoch_leaves_it_to_its_directory(tmp_path, monkeypatch):
    store, create = ObjectStore(f"file://{tmp_path}/mirror"), ObjectStore.create

    def killed(store: ObjectStore, name: str, content: bytes) -> bool:
        create(store, name, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(ObjectStore, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        take(store, tmp_path / "run")
    monkeypatch.undo()
    assert take(store, tmp_path / "run").holder.epoch == 2


def test_an_unfinished_heartbeat_counts_as_none(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(StoreError, match="the store died"):
        Lease.take(dying_store(tmp_path / "mirror", 1), tmp_path / "run", 60, None)
    assert take(ObjectStore(f"file://{tmp_path}/mirror"), tmp_path / "run").holder.epoch == 2


def test_a_prefix_with_other_files_is_refused(store, tmp_path):
    store.write("models/weights.bin", b"1")
    with pytest.raises(InputError, match=r"contains models/weights.bin, which is not a mirror"):
        check_lease(store, tmp_path / "run")


def test_a_deleted_mirror_is_an_error_of_the_store_and_not_a_loss(tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    lease = take(store, tmp_path / "run")
    (tmp_path / "mirror/lease/00001.json").unlink()
    with pytest.raises(StoreError, match="is missing"):
        lease.renew()
    lease.check()
