"""The host of a run is lost: restored from its mirror on another one, it ends like an undisturbed run."""

from __future__ import annotations

import random
import shutil
import uuid
from collections.abc import Iterator

import pytest

from reval_core.maintenance.restore import check_restore, read_mirror, restore
from reval_core.storage.published import is_record, published_files
from reval_core.storage.run_directory import RunDirectory
from tests.faults.test_kill import assert_same_end, shards, start, undisturbed
from tests.stores import s3_server

__all__ = ["start", "undisturbed"]

KILLS = 24
SHORT = 2


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def start_with_store(bucket, request):
    """As `start`, in a process that was started when the environment named the S3 server."""
    return request.getfixturevalue("start")


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[pytest.mark.full] * (number >= SHORT)) for number in range(KILLS)]
)
def test_a_run_whose_host_is_lost_ends_like_an_undisturbed_one(
    start_with_store, undisturbed, tmp_path, bucket, number
):
    url, rng = f"{bucket}/{uuid.uuid4()}", random.Random(number)
    later = [moment for moment in undisturbed.moments if moment.split("/")[1] in ("2", "3")]
    moment = rng.choice(later)
    assert start_with_store(tmp_path / "a" / "run", mirror=url, kill=moment) == -9, f"{moment} was not reached"
    shutil.rmtree(tmp_path / "a")

    directory, found = RunDirectory(tmp_path / "b" / "run"), read_mirror(url)
    check_restore(found, directory, take_over=True)
    assert restore(found, directory).holder.epoch == 2
    assert set(published_files(directory.path)) == set(found.index.entries)
    finished = shards(directory.path)
    assert len(finished) >= 2, "the mirror holds round 1"

    second = rng.choice(
        [one for one in later if undisturbed.moments.index(one) >= undisturbed.moments.index(moment)]
    )
    if number % 2:  # the second host is lost as well
        start_with_store(directory.path, mirror=url, kill=second)
        shutil.rmtree(tmp_path / "b")
        directory, found = RunDirectory(tmp_path / "c" / "run"), read_mirror(url)
        restore(found, directory)
        finished = shards(directory.path)
    assert start_with_store(directory.path, mirror=url) == 0, moment
    assert {name: shards(directory.path)[name] for name in finished} == finished, "a mirrored shard was regenerated"
    assert_same_end(directory.path, undisturbed)

    records = set(filter(is_record, published_files(directory.path)))
    assert records == set(filter(is_record, read_mirror(url).index.entries)), "all was copied before the end"
