"""The mirror of a run: what it holds is whole at every moment, whatever fails."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from pathlib import Path

import pytest

from reval_core.atomic_files import publish_directory, publish_file, publish_json, publish_sealed, remove_directory
from reval_core.config.storage import Storage
from reval_core.errors import CorruptData, RunStopped
from reval_core.pipeline.mirroring import mirrored
from reval_core.storage.lease import Lease, check_lease, read_lease
from reval_core.storage.mirror import Mirror
from reval_core.storage.mirror_index import Entry, Index, IndexWriter, read_index
from reval_core.storage.object_store import ObjectStore, StoreError
from reval_core.storage.published import named, published_files
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest, TableFile
from tests.stores import DyingFiles, dying_store

ROUNDS = 3


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A directory with what a run publishes, in its order, and with what stays on the host."""
    run = RunDirectory(tmp_path / "run")
    publish_file(run.config, lambda partial: partial.write_text("seed: 0\n"))
    publish_sealed(run.machine, {"threads": 1})
    (run.path / "lock").touch()
    (run.path / "replay.duckdb").write_bytes(b"index")
    publish_checkpoint(run, 0)
    for round in range(1, ROUNDS + 1):
        publish_round(run, round)
    return run


def publish_round(run: RunDirectory, round: int, content: str = "") -> None:
    files = []
    for shard in range(2):
        path, text = run.shard(round, shard), f"{content}rows {round} {shard}".encode()
        publish_file(run.path / path, lambda partial, text=text: partial.write_bytes(text))
        sha256 = hashlib.sha256(text).hexdigest()
        files.append(TableFile("trajectories", path, 1, sha256, sha256))
        publish_sealed((run.path / path).with_suffix(".json"), {"file": vars(files[-1])})
    run.publish(Manifest("rollouts", round, "key", tuple(files)))


def publish_checkpoint(run: RunDirectory, round: int) -> None:
    publish_directory(run.checkpoint(round), lambda partial: (partial / "model.safetensors").write_text(f"{round}"))


def open_mirror(store: ObjectStore, run: RunDirectory) -> Mirror:
    """A mirror that copies only when told to."""
    lease = Lease.take(store, run.path, 60, check_lease(store, run.path))
    return Mirror(store, lease, IndexWriter(store, lease.holder.name, read_index(store) or Index()), run.path)


def held(store: ObjectStore) -> dict[str, bytes]:
    """What a reader of the mirror gets. Every object that the index lists exists and has the listed digest."""
    index = read_index(store)
    assert index is not None
    files = {path: store.read(entry.object) for path, entry in index.entries.items()}
    for path, entry in index.entries.items():
        content = files[path]
        assert content is not None, path
        assert hashlib.sha256(content).hexdigest() == entry.sha256
        assert len(content) == entry.size
    return {path: content for path, content in files.items() if content is not None}


def assert_whole(store: ObjectStore) -> dict[str, bytes]:
    """Whatever a record in the mirror names is in the mirror too, with the digest that the record gives."""
    files = held(store)
    for path, content in files.items():
        if path.startswith(("rollouts/", "checkpoints/")) and path.endswith(".json"):
            for name, digests in named(path, content, 0).items():
                assert hashlib.sha256(files[name]).hexdigest() in digests, f"{path} names {name}"
    return files


def local(run: RunDirectory) -> dict[str, bytes]:
    return {path: (run.path / path).read_bytes() for path in published_files(run.path)}


def test_a_mirror_holds_what_resuming_needs_and_nothing_else(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    open_mirror(store, directory).sync()
    files = assert_whole(store)
    assert files == local(directory)
    assert {"config.yaml", "machine.json", "rollouts/round=00001/manifest.json"} <= set(files)
    assert "checkpoints/round=00000/model.safetensors" in files
    assert not {"lock", "replay.duckdb", "lease.json"} & set(files)


def test_only_new_files_are_copied(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    mirror = open_mirror(store, directory)
    mirror.sync()
    before = set(store.names("files"))
    mirror.sync()
    assert set(store.names("files")) == before
    publish_round(directory, ROUNDS + 1)
    mirror.sync()
    assert sorted(name.rpartition("/")[2] for name in set(store.names("files")) - before) == [
        "manifest.json",
        "shard-000.json",
        "shard-000.parquet",
        "shard-001.json",
        "shard-001.parquet",
    ]


def test_a_resumed_run_copies_only_what_is_missing(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    open_mirror(store, directory).sync()
    before = set(store.names("files"))
    publish_round(directory, ROUNDS + 1)
    open_mirror(store, directory).sync()
    assert len(set(store.names("files")) - before) == 5
    assert assert_whole(store) == local(directory)


def test_wherever_a_store_dies_what_was_copied_is_whole_and_the_rest_follows(directory, tmp_path):
    commits = set()
    for writes in range(2, 60, 3):
        place = tmp_path / f"mirror-{writes}"
        shutil.rmtree(directory.path / "checkpoints")
        publish_checkpoint(directory, 0)
        (directory.path / "lease.json").unlink(missing_ok=True)
        dying = dying_store(place, 1000)
        mirror = open_mirror(dying, directory)
        files = dying._files
        assert isinstance(files, DyingFiles)
        files.writes = writes
        try:
            mirror.sync()
            publish_round(directory, ROUNDS + 1)
            mirror.sync()
            publish_round(directory, ROUNDS + 1, "other ")
            mirror.sync()
        except StoreError as error:
            assert "the store died" in str(error)  # noqa: PT017
        commits.add(len(assert_whole(ObjectStore(f"file://{place}"))))
        files.writes = 1000
        mirror.sync()
        assert assert_whole(ObjectStore(f"file://{place}")) == local(directory)
        shutil.rmtree(directory.path / f"rollouts/round={ROUNDS + 1:05d}", ignore_errors=True)
    assert len(commits) >= 3, "the store died before, between and in commits"


def test_a_record_whose_file_is_corrupt_is_not_copied_and_named_at_the_end(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    (directory.path / directory.shard(2, 1)).write_bytes(b"corrupt")
    with pytest.raises(
        RunStopped, match=r"rollouts/round=00002/manifest.json, .*shard-001.json not copied: .*names"
    ):
        open_mirror(store, directory)._finish(0)
    files = assert_whole(store)
    assert "rollouts/round=00002/manifest.json" not in files
    assert "rollouts/round=00003/manifest.json" in files


def test_half_a_checkpoint_is_not_listed(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    publish_checkpoint(directory, 1)
    (directory.checkpoint(1) / "model.safetensors").unlink()
    mirror = open_mirror(store, directory)
    mirror.sync()
    assert not [path for path in assert_whole(store) if path.startswith("checkpoints/round=00001")]
    assert mirror.lag.files == 1


def test_deleted_checkpoints_and_their_objects_are_removed(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    publish_checkpoint(directory, 1)
    mirror = open_mirror(store, directory)
    mirror.sync()
    remove_directory(directory.checkpoint(1))
    mirror.sync()
    assert assert_whole(store) == local(directory)
    assert not [name for name in store.names("files") if "round=00001/model" in name]


def test_nothing_is_removed_while_a_record_is_missing_that_no_run_deletes(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    publish_checkpoint(directory, 1)
    mirror = open_mirror(store, directory)
    mirror.sync()
    before = assert_whole(store)
    shutil.rmtree(directory.path / "rollouts")
    shutil.rmtree(directory.path / "checkpoints")
    mirror.sync()
    assert assert_whole(store) == before


def test_pruning_replaces_the_shards_by_the_merged_tables(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    mirror = open_mirror(store, directory)
    mirror.sync()

    def merge(partial: Path) -> None:
        (partial / "rollouts-trajectories.parquet").write_text("merged")
        publish_json(partial / "pruned.json", {"at_round": ROUNDS})

    publish_directory(directory.pruned(2), merge)
    for round in (1, 2):
        for path in (directory.path / f"rollouts/round={round:05d}").glob("shard-*"):
            path.unlink()
    mirror.sync()
    assert held(store) == local(directory)
    assert not [name for name in store.names("files") if "round=00001/shard" in name]


def test_a_fresh_mirror_of_a_pruned_run_is_complete(directory, tmp_path):
    publish_directory(directory.pruned(2), lambda partial: publish_json(partial / "pruned.json", {"at_round": 3}))
    for round in (1, 2):
        for path in (directory.path / f"rollouts/round={round:05d}").glob("shard-*"):
            path.unlink()
    store = ObjectStore(f"file://{tmp_path}/mirror")
    mirror = open_mirror(store, directory)
    mirror.sync()
    assert held(store) == local(directory)
    assert mirror.lag == type(mirror.lag)(0, 0.0)


def test_what_a_holder_writes_after_it_lost_the_lease_is_not_read(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    stale = open_mirror(store, directory)
    stale.sync()
    other = RunDirectory(tmp_path / "other")
    shutil.copytree(directory.path, other.path)
    lease = Lease.take(store, other.path, 60, read_lease(store))
    current = Mirror(store, lease, IndexWriter(store, lease.holder.name, read_index(store) or Index()), other.path)
    before = assert_whole(store)
    publish_round(directory, ROUNDS + 1, "stale ")
    remove_directory(directory.checkpoint(0))
    with pytest.raises(RunStopped, match="has taken the lease of this run"):
        stale.sync()  # it has not noticed yet: it commits, and learns of the loss before it deletes objects
    assert assert_whole(store) == before
    publish_round(other, ROUNDS + 1)
    current.sync()
    assert assert_whole(store) == local(other)
    with pytest.raises(RunStopped, match="has taken the lease of this run"):
        stale.sync()


def test_objects_that_earlier_epochs_left_behind_are_deleted(directory, tmp_path):
    dying = dying_store(tmp_path / "mirror", 12)
    with pytest.raises(StoreError):
        open_mirror(dying, directory).sync()
    store = ObjectStore(f"file://{tmp_path}/mirror")
    left = set(store.names("files"))
    assert left
    open_mirror(store, directory).sync()
    assert not left & set(store.names("files"))
    index = read_index(store)
    assert index is not None
    assert {entry.object for entry in index.entries.values()} == set(store.names("files"))
    assert {name.split("/")[1][:5] for name in store.names("index")} == {"00002"}


def test_many_commits_are_read_from_the_last_complete_record(directory, tmp_path, monkeypatch):
    monkeypatch.setattr("reval_core.storage.mirror_index._COMPLETE_EVERY", 5)
    store = ObjectStore(f"file://{tmp_path}/mirror")
    mirror = open_mirror(store, directory)
    for number in range(12):
        publish_json(directory.summary, {"number": number})
        mirror.sync()
    assert assert_whole(store) == local(directory)
    for name in store.names("index"):
        if int(name[-11:-5]) < 10:
            store.write(name, b"unread")
    assert assert_whole(store) == local(directory)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "rollouts/../../x", "replay.duckdb", "cache/x", ""])
def test_a_mirror_that_lists_other_paths_than_a_run_publishes_is_refused(directory, tmp_path, path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    lease = Lease.take(store, directory.path, 60, None)
    IndexWriter(store, lease.holder.name, Index({path: Entry("files/x", "0" * 64, 1)}))
    with pytest.raises(CorruptData, match="which is not a file of a run"):
        read_index(store)


def test_an_interrupted_run_does_not_begin_further_copies_for_long(directory, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("reval_core.storage.mirror._HASTY_SECONDS", -1.0)
    store = ObjectStore(f"file://{tmp_path}/mirror")
    mirror = open_mirror(store, directory)
    mirror.sync()
    before = assert_whole(store)
    publish_round(directory, ROUNDS + 1)
    mirror._thread.start()
    mirror.__exit__(KeyboardInterrupt)
    assert assert_whole(store) == before
    assert "the run ended before it was copied" in caplog.text


def test_a_missing_or_changed_record_is_found_and_an_unfinished_last_one_is_ignored(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    mirror = open_mirror(store, directory)
    mirror.sync()
    for number in (1, 2):
        before = local(directory)
        publish_round(directory, ROUNDS + number)
        mirror.sync()
    last = store.names("index")[-1]
    content = store.read(last)
    assert content is not None
    store.write(last, content[:-20])
    assert held(store) == before
    store.write(last, content)
    middle = store.names("index")[-2]
    store.write(middle, content)
    with pytest.raises(CorruptData, match="is not the record of commit 2"):
        read_index(store)
    store.delete([middle])
    with pytest.raises(CorruptData, match="is not the record of commit 2"):
        read_index(store)


def test_a_store_that_fails_for_a_while_is_warned_of_and_tried_again(directory, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("reval_core.storage.mirror._RETRY_SECONDS", (0.01,))
    dying = dying_store(tmp_path / "mirror", 1000)
    mirror = open_mirror(dying, directory)
    files = dying._files
    assert isinstance(files, DyingFiles)
    files.writes = 4
    with mirror:
        while not caplog.messages:
            mirror.wake()
        assert mirror.lag.files > 0
        files.writes = 1000
    assert "files cannot be copied to the mirror, which is tried again: " in caplog.messages[0]
    assert "can be reached again" in caplog.messages[-1]
    assert mirror.lag.files == 0
    assert assert_whole(ObjectStore(f"file://{tmp_path}/mirror")) == local(directory)


def test_what_is_published_is_copied_at_once(directory, tmp_path):
    store = ObjectStore(f"file://{tmp_path}/mirror")
    with open_mirror(store, directory) as mirror:
        while mirror.lag.seconds:
            time.sleep(0.01)
        publish_round(directory, ROUNDS + 1)
        mirror.wake()
        while mirror.lag.seconds:  # the next copy without being woken is a minute away
            time.sleep(0.01)
        assert assert_whole(store) == local(directory)


def test_a_run_that_ends_without_its_store_names_what_is_missing(directory, tmp_path, monkeypatch):
    monkeypatch.setattr("reval_core.storage.mirror._RETRY_SECONDS", (0.01, 0.01))
    dying = dying_store(tmp_path / "mirror", 4)
    with (
        pytest.raises(RunStopped, match=r"not copied: .*the store died\); .*/run is complete, and reval resume"),
        open_mirror(dying, directory),
    ):
        pass


def test_an_error_of_the_run_is_not_replaced_by_one_of_its_mirror(directory, tmp_path, caplog):
    dying = dying_store(tmp_path / "mirror", 4)
    with pytest.raises(ZeroDivisionError), open_mirror(dying, directory):
        raise ZeroDivisionError
    assert "the store died" in caplog.text


def test_a_run_that_breaks_releases_its_lease_and_stops_copying(directory, tmp_path):
    threads = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), mirrored(directory, Storage(mirror=f"file://{tmp_path}/mirror")):
        raise ZeroDivisionError
    assert set(threading.enumerate()) == threads
    copy = Path(shutil.copytree(directory.path, tmp_path / "copy"))
    assert check_lease(ObjectStore(f"file://{tmp_path}/mirror"), copy) is not None, "released"
