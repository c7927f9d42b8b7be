"""Trajectories: writing shards, and reading rows by index."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reval_core.engines.response import Response
from reval_core.errors import CorruptData
from reval_core.model.loading import make_tiny_tokenizer
from reval_core.replay_buffer import trajectories
from reval_core.replay_buffer.trajectories import (
    IDS_PER_ROUND,
    RowReader,
    list_rows,
    response_table,
    responses_of,
)
from reval_core.storage.tables import SCHEMAS, publish_table, read_table

SIZES = {"a.parquet": 5, "b.parquet": 1, "deep/c.parquet": 9}
PLACES = [(path, row) for path, size in SIZES.items() for row in range(size)]
COLUMNS = ("trajectory_id", "response_tokens", "engine_logprobs")

places = st.lists(st.sampled_from(PLACES), min_size=1, max_size=30)


def example(first: int, rows: int) -> pa.Table:
    columns: dict[str, Any] = {field.name: [None] * rows for field in SCHEMAS["trajectories"]}
    numbers = range(first, first + rows)
    columns["trajectory_id"] = list(numbers)
    columns["response_tokens"] = [list(range(number % 4)) for number in numbers]
    columns["engine_logprobs"] = [[-number / 8] * (number % 4) for number in numbers]
    return pa.table(columns, schema=SCHEMAS["trajectories"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards whose rows are numbered from 0 on, in the order of PLACES."""
    directory = tmp_path_factory.mktemp("shards")
    first = 0
    for path, size in SIZES.items():
        publish_table(directory, path, "trajectories", example(first, size))
        first += size
    return directory


def check(found: pa.Table, asked: list[tuple[str, int]]) -> None:
    numbers = [PLACES.index(place) for place in asked]
    assert found.column_names == list(COLUMNS)
    assert found.column("trajectory_id").to_pylist() == numbers
    assert found.column("response_tokens").to_pylist() == [list(range(number % 4)) for number in numbers]
    assert found.column("engine_logprobs").to_pylist() == [[-number / 8] * (number % 4) for number in numbers]


@settings(max_examples=40, deadline=None)
@given(asked=places)
def test_rows_are_returned_in_the_requested_order(shards: Path, asked: list[tuple[str, int]]) -> None:
    paths, rows = zip(*asked, strict=True)
    check(RowReader(shards, COLUMNS).take(paths, rows), asked)


@settings(max_examples=10, deadline=None)
@given(first=places, second=places)
def test_a_reader_that_keeps_one_file_reads_the_same_rows(
    shards: Path, first: list[tuple[str, int]], second: list[tuple[str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories, "CACHED_BYTES", 1)
        reader = RowReader(shards, COLUMNS)
        for asked in (first, second, first):
            paths, rows = zip(*asked, strict=True)
            check(reader.take(paths, rows), asked)


def test_a_file_read_last_is_kept_in_memory(tmp_path: Path) -> None:
    publish_table(tmp_path, "a.parquet", "trajectories", example(0, 3))
    reader = RowReader(tmp_path, COLUMNS)
    once = reader.take(["a.parquet"], [1])
    (tmp_path / "a.parquet").unlink()
    assert reader.take(["a.parquet"], [1]).equals(once)


def test_a_missing_file_is_named(shards: Path) -> None:
    with pytest.raises(CorruptData, match=r"none\.parquet"):
        RowReader(shards, COLUMNS).take(["a.parquet", "none.parquet"], [0, 0])


def test_paths_and_rows_must_pair_up(shards: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        RowReader(shards, COLUMNS).take(["a.parquet", "b.parquet"], [0])


@settings(max_examples=40, deadline=None)
@given(
    lists=st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=12),
    cuts=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    chunks=st.integers(1, 5),
)
def test_list_rows_gives_one_array_per_row_of_any_slice(
    lists: list[list[int]], cuts: tuple[int, int], chunks: int
) -> None:
    parts = [lists[start : start + chunks] for start in range(0, len(lists), chunks)]
    column = pa.chunked_array(parts, pa.list_(pa.int32()))
    start, end = sorted(cuts)
    found = list_rows(column.slice(start, end - start))
    assert [row.tolist() for row in found] == lists[start:end]
    assert all(row.dtype == np.int32 for row in found)


@pytest.mark.parametrize(
    ("kind", "rows"), [(pa.bool_(), [[True], [], [False, True]]), (pa.float32(), [[0.5], [], [1.0, -2.0]])]
)
def test_list_rows_takes_every_kind_that_a_shard_holds(kind: pa.DataType, rows: list[list[Any]]) -> None:
    column = pa.chunked_array([rows], pa.list_(kind))
    assert [row.tolist() for row in list_rows(column)] == rows


def test_a_shard_contains_requests_and_responses(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer("0123456789+=")
    prompt = tokenizer.encode("1+2=")
    asked = [
        Response("p", "1+2=", "3", "any", "sums", sample, "1+2=", prompt, 2**59 + sample) for sample in range(2)
    ]
    three, end = tokenizer.encode("3")[0], tokenizer.eos_token_id
    interrupted = asked[0].extended([three], [-0.5], "partial").written_by(5)
    responses = [
        interrupted.extended([end], [-0.25], "stop").written_by(6),
        asked[1].extended([three] * 3, [-1.0] * 3, "length").written_by(6),
    ]
    rows = response_table(
        responses,
        tokenizer,
        round=7,
        shard=2,
        first_id=7 * IDS_PER_ROUND + 40,
        policy="the policy",
        engine="the engine",
        temperature=0.5,
    )
    publish_table(tmp_path, "shard.parquet", "trajectories", rows)
    first, second = read_table(tmp_path / "shard.parquet").to_pylist()
    assert first == {
        "trajectory_id": 7 * IDS_PER_ROUND + 40,
        "round": 7,
        "shard": 2,
        "row": 0,
        "prompt_id": "p",
        "sample": 0,
        "problem": "1+2=",
        "gold": "3",
        "problem_set": "sums",
        "gold_mode": "any",
        "given_reward": None,
        "prompt": "1+2=",
        "response": "3",
        "prompt_length": 4,
        "response_length": 2,
        "finish_reason": "stop",
        "policy": "the policy",
        "engine": "the engine",
        "temperature": 0.5,
        "seed": 2**59,
        "prompt_tokens": prompt,
        "response_tokens": [three, end],
        "loss_mask": [True, True],
        "engine_logprobs": [-0.5, -0.25],
        "policy_rounds": [5, 6],
    }
    assert (second["trajectory_id"], second["row"], second["sample"]) == (first["trajectory_id"] + 1, 1, 1)
    assert (second["response"], second["response_length"], second["loss_mask"]) == ("333", 3, [True] * 3)


def test_responses_that_were_cut_off_survive_the_round_trip_through_the_table(tmp_path: Path) -> None:
    asked = [Response("p", "1+2=", "3", "any", "sums", sample, "1+2=", [4, 5], 100 + sample) for sample in range(3)]
    responses = [
        asked[0].extended([7, 2], [-0.5, -0.25], "stop").written_by(4),
        asked[1].extended([8], [-0.125], "partial").written_by(4),
        replace(asked[2], tokens=[], logprobs=[], policy_rounds=[]),
    ]
    rows = response_table(
        responses,
        make_tiny_tokenizer("0123456789+="),
        round=5,
        shard=None,
        first_id=5 * IDS_PER_ROUND + 9,
        policy="the policy",
        engine="vllm",
        temperature=1.0,
    )
    publish_table(tmp_path, "partials.parquet", "partials", rows)
    assert responses_of(read_table(tmp_path / "partials.parquet")) == responses
