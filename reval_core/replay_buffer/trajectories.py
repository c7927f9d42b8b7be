"""Trajectories on disk: responses as rows of a shard, and reading drawn rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from reval_core.engines.response import Response
from reval_core.storage.tables import SCHEMAS, read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IDS_PER_ROUND = 10_000_000
"""A trajectory's id is round × this + its index in the round, so the id determines the round."""

CACHED_BYTES = 1 << 30
"""The size of a reader's cache of the most recently read files."""


_FIELDS = {
    **{
        name: name
        for name in ("prompt_id", "sample", "problem", "gold", "problem_set", "gold_mode", "given_reward", "prompt")
    },
    **{name: name for name in ("finish_reason", "seed", "prompt_tokens", "policy_rounds")},
    "response_tokens": "tokens",
    "engine_logprobs": "logprobs",
}
"""The columns of `trajectories` that hold a field of a response, and the field."""


def response_table(
    responses: Sequence[Response],
    tokenizer: PreTrainedTokenizerBase,
    *,
    round: int,
    shard: int | None,
    first_id: int,
    policy: str,
    engine: str,
    temperature: float | None,
) -> pa.Table:
    """The rows of a shard, in the schema of `trajectories`.

    Ids ascend over the shards of a round in order: the reader of draws locates a trajectory's scores by its index.

    Args:
        responses: The responses.
        tokenizer: Decodes the responses that have no text.
        round: The round.
        shard: The number of the shard; None for responses that were cut off.
        first_id: The id of the first row.
        policy: The identity of the policy that generated the responses.
        engine: The name of the engine.
        temperature: The sampling temperature; None if not known.
    """
    count = len(responses)
    decoded = iter(
        tokenizer.batch_decode([one.tokens for one in responses if one.text is None], skip_special_tokens=True)
    )
    columns = {
        **{name: [getattr(one, field) for one in responses] for name, field in _FIELDS.items()},
        "trajectory_id": range(first_id, first_id + count),
        "round": [round] * count,
        "shard": [shard] * count,
        "row": range(count),
        "response": [next(decoded) if one.text is None else one.text for one in responses],
        "prompt_length": [len(one.prompt_tokens) for one in responses],
        "response_length": [len(one.tokens) for one in responses],
        "policy": [policy] * count,
        "engine": [engine] * count,
        "temperature": [temperature] * count,
        "loss_mask": [[True] * len(one.tokens) for one in responses],
    }
    return pa.table({name: columns[name] for name in SCHEMAS["trajectories"].names}, schema=SCHEMAS["trajectories"])


def responses_of(rows: pa.Table) -> list[Response]:
    """The responses that `response_table` made these rows of."""
    columns = {field: rows.column(name).to_pylist() for name, field in _FIELDS.items()}
    return [Response(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


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
