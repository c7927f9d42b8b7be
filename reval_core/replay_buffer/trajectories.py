"""Trajectories on disk: responses as rows of a shard, and reading drawn rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from reval_core.engines.engine import FinishReason
from reval_core.problems import Problem
from reval_core.storage.tables import SCHEMAS, read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IDS_PER_ROUND = 10_000_000
"""A trajectory's id is round × this + its index in the round, so the id determines the round."""

CACHED_BYTES = 1 << 30
"""The size of a reader's cache of the most recently read files."""


@dataclass(frozen=True)
class SampleRequest:
    """A request for one response: sample number `sample` of `problem`."""

    problem: Problem
    sample: int
    prompt: str
    prompt_tokens: Sequence[int]
    seed: int


@dataclass(frozen=True)
class GeneratedResponse:
    """A response, complete or not. All lists have one element per token."""

    tokens: list[int]
    logprobs: list[float]
    """As returned by the engine."""
    policy_rounds: list[int]
    """The round of the policy that wrote each token."""
    finish_reason: FinishReason


def response_table(
    requests: Sequence[SampleRequest],
    responses: Sequence[GeneratedResponse],
    tokenizer: PreTrainedTokenizerBase,
    *,
    round: int,
    shard: int | None,
    first_id: int,
    policy: str,
    engine: str,
    temperature: float,
) -> pa.Table:
    """The rows of a shard, in the schema of `trajectories`.

    Ids ascend over the shards of a round in order: the reader of draws locates a trajectory's scores by its index.

    Args:
        requests: The requests.
        responses: The response to each request.
        tokenizer: Decodes the responses.
        round: The round.
        shard: The number of the shard; None for responses that were cut off.
        first_id: The id of the first row.
        policy: The identity of the policy that generated the responses.
        engine: The name of the engine.
        temperature: The sampling temperature.
    """
    count = len(requests)
    tokens = [response.tokens for response in responses]
    columns = {
        "trajectory_id": [first_id + row for row in range(count)],
        "round": [round] * count,
        "shard": [shard] * count,
        "row": list(range(count)),
        "prompt_id": [one.problem.prompt_id for one in requests],
        "sample": [one.sample for one in requests],
        "problem": [one.problem.problem for one in requests],
        "gold": [one.problem.answer for one in requests],
        "problem_set": [one.problem.problem_set for one in requests],
        "gold_mode": [one.problem.gold_mode for one in requests],
        "given_reward": pa.nulls(count, pa.float32()),
        "prompt": [one.prompt for one in requests],
        "response": tokenizer.batch_decode(tokens, skip_special_tokens=True),
        "prompt_length": [len(one.prompt_tokens) for one in requests],
        "response_length": [len(response) for response in tokens],
        "finish_reason": [response.finish_reason for response in responses],
        "policy": [policy] * count,
        "engine": [engine] * count,
        "temperature": [temperature] * count,
        "seed": [one.seed for one in requests],
        "prompt_tokens": [list(one.prompt_tokens) for one in requests],
        "response_tokens": tokens,
        "loss_mask": [[True] * len(response) for response in tokens],
        "engine_logprobs": [response.logprobs for response in responses],
        "policy_rounds": [response.policy_rounds for response in responses],
    }
    return pa.table(columns, schema=SCHEMAS["trajectories"])


class RowReader:
    """Reads rows of published files by index, and caches the most recently read files."""

    def __init__(self, directory: Path, columns: Sequence[str]) -> None:
        self._directory = directory
        self._columns = columns
        self._files: OrderedDict[str, pa.Table] = OrderedDict()
        self._bytes = 0

    def take(self, paths: Sequence[str], rows: Sequence[int]) -> pa.Table:
        """Row `rows[i]` of file `paths[i]` for every i, in that order.

        Raises:
            CorruptData: If a file cannot be read; the message names it.
        """
        rows_by_path: dict[str, list[int]] = {}
        order: dict[str, list[int]] = {}
        for place, (path, row) in enumerate(zip(paths, rows, strict=True)):
            rows_by_path.setdefault(path, []).append(row)
            order.setdefault(path, []).append(place)
        found = pa.concat_tables(self._file(path).take(pa.array(rows)) for path, rows in rows_by_path.items())
        places = np.concatenate([order[path] for path in rows_by_path])
        return found.take(pa.array(np.argsort(places)))

    def _file(self, path: str) -> pa.Table:
        if path not in self._files:
            self._files[path] = read_table(self._directory / path, self._columns).combine_chunks()
            self._bytes += self._files[path].nbytes
            while len(self._files) > 1 and self._bytes > CACHED_BYTES:
                _, oldest = self._files.popitem(last=False)
                self._bytes -= oldest.nbytes
        self._files.move_to_end(path)
        return self._files[path]


def logprob_rows(column: pa.ChunkedArray, responses: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The log-probs of the tokens of `responses`, one array per row; NaN where a row is null (not known)."""
    known = column.is_valid().to_pylist()
    return [
        row if is_known else np.full(len(response), np.nan, np.float32)
        for row, is_known, response in zip(list_rows(column), known, responses, strict=True)
    ]


def list_rows(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A list column as one array per row; empty where the row is null."""
    lists = column.combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False)
    offsets = lists.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]
