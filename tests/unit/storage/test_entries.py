"""An untrusted run directory cannot point elsewhere: no links, no pipes, no paths that leave it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from reval_core.atomic_files import publish_file, publish_json, publish_sealed, read_json
from reval_core.errors import CorruptData, InputError
from reval_core.evaluation.directory import published_tables
from reval_core.storage.entries import check_entries
from reval_core.storage.run_directory import RunDirectory, existing_run
from reval_core.storage.tables import Manifest, TableFile, read_manifest
from tests.runs import small_config

FILE = {"table": "trajectories", "path": "rollouts/a.parquet", "rows": 1, "sha256": "0", "content": "0"}
MANIFEST = Manifest("rollouts", 1, "key").to_json()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.open(small_config())
    (directory.path / "facts/round=00001").mkdir(parents=True)
    return directory


def test_regular_files_and_a_link_to_the_whole_directory_are_fine(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run.path)
    check_entries(run.path)
    check_entries(tmp_path / "link")
    check_entries(tmp_path / "nothing is here")


@pytest.mark.parametrize(
    "place", ["lock", "config.yaml.partial", "facts/round=00001/verdicts.parquet", "checkpoints"]
)
def test_a_link_is_refused_by_name_before_anything_is_opened(run: RunDirectory, tmp_path: Path, place: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("the owner's")
    (run.path / place).symlink_to(precious)
    for use in (
        lambda: existing_run(run.path),
        lambda: published_tables(run.path),
        lambda: run.check(small_config()),
    ):
        with pytest.raises(InputError, match=rf"{place}: is a symbolic link.*regular files and directories"):
            use()
    with pytest.raises(InputError, match=f"{place}: is a symbolic link"), run.lock():
        pass
    assert precious.read_text() == "the owner's"


def test_a_pipe_and_a_socket_are_refused_where_reading_would_block_forever(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(run.path / "machine.json")
    with pytest.raises(InputError, match=r"machine\.json: is a named pipe"):
        existing_run(run.path)
    (run.path / "machine.json").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(run.path)  # the path of a socket must be short
        listening.bind("a")
        with pytest.raises(InputError, match="a: is a socket"):
            existing_run(run.path)


def test_publishing_does_not_write_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("the owner's")
    (tmp_path / "file.json.partial").symlink_to(precious)
    publish_file(tmp_path / "file.json", lambda partial: partial.write_text("new"))
    assert (tmp_path / "file.json").read_text() == "new"
    assert not (tmp_path / "file.json").is_symlink()
    assert precious.read_text() == "the owner's"


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "."])
def test_a_manifest_lists_no_file_outside_of_its_run(run: RunDirectory, path: str) -> None:
    place = run.manifest_path("rollouts", 1)
    publish_sealed(place, {**MANIFEST, "files": [{**FILE, "path": path}]})
    with pytest.raises(CorruptData, match=r"manifest\.json: is not a manifest \(.*not a file of a run"):
        read_manifest(place)


@pytest.mark.parametrize(
    "change",
    [
        {"round": "first"},
        {"files": 3},
        {"files": [{**FILE, "rows": None}]},
        {"files": [{**FILE, "table": "passwords"}]},
        {"info": []},
        {"seconds": "x"},
        {"more": 1},
    ],
)
def test_a_manifest_with_wrong_types_is_corrupt(run: RunDirectory, change: dict[str, object]) -> None:
    place = run.manifest_path("rollouts", 1)
    publish_sealed(place, {**MANIFEST, **change})
    with pytest.raises(CorruptData, match=r"manifest\.json: is not a manifest"):
        read_manifest(place)


def test_a_missing_key_of_a_record_is_named_with_its_file(run: RunDirectory) -> None:
    place = run.manifest_path("warm_start", 0)
    publish_sealed(place, Manifest("warm_start", 0, "key").to_json())
    found = read_manifest(place)
    assert found is not None
    with pytest.raises(CorruptData, match=r"warm_start\.json: has no 'policy'"):
        found.info["policy"]
    publish_json(run.path / "summary.json", {"rounds": 1})
    with pytest.raises(CorruptData, match=r"summary\.json: has no 'run'"):
        read_json(run.path / "summary.json")["run"]


def test_a_file_of_a_run_stays_in_it() -> None:
    assert TableFile(**FILE).path == "rollouts/a.parquet"
