"""The facts that a run leaves: the schema of each table, and how a table is published.

Every stage publishes Parquet files and, last, a manifest that lists them with their checksums. What no
manifest lists does not exist. DuckDB (`reval_core.replay_buffer.index`) is an index over these files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter, ValidationError

from reval_core.atomic_files import Record, digest, file_digest, publish_file, publish_sealed, read_sealed
from reval_core.errors import CorruptData

SCHEMA_VERSION = "8"

Table = str
"""The name of a table: a key of `SCHEMAS`."""

_FLOATS = pa.list_(pa.float32())
_IDS = pa.list_(pa.int32())


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(list(columns), metadata={"reval.schema_version": SCHEMA_VERSION})


_RESPONSES = _schema(
    ("trajectory_id", pa.int64()),
    ("round", pa.int32()),
    ("shard", pa.int32()),
    ("row", pa.int32()),
    ("prompt_id", pa.string()),
    ("sample", pa.int32()),
    ("problem", pa.string()),
    ("gold", pa.string()),
    ("problem_set", pa.string()),
    ("gold_mode", pa.string()),
    ("given_reward", pa.float32()),
    ("prompt", pa.string()),
    ("response", pa.string()),
    ("prompt_length", pa.int32()),
    ("response_length", pa.int32()),
    ("finish_reason", pa.string()),
    ("policy", pa.string()),
    ("engine", pa.string()),
    ("temperature", pa.float32()),
    ("seed", pa.int64()),
    ("prompt_tokens", _IDS),
    ("response_tokens", _IDS),
    ("loss_mask", pa.list_(pa.bool_())),
    ("engine_logprobs", _FLOATS),
    ("policy_rounds", _IDS),
)

SCHEMAS: dict[Table, pa.Schema] = {
    # One row a response, as the engine gave it. docs/schema.md describes every column.
    "trajectories": _RESPONSES,
    # One row a response of a prompt whose responses were cut off, and which the next round goes on with.
    "partials": _RESPONSES,
    # One row a trajectory: what the verifier said, and the reward that the learner is given.
    "verdicts": _schema(
        ("trajectory_id", pa.int64()),
        ("round", pa.int32()),
        ("verdict", pa.string()),
        ("extracted", pa.string()),
        ("correct", pa.bool_()),
        ("outcome", pa.float32()),
        ("overlong_penalty", pa.float32()),
        ("reward", pa.float32()),
        ("advantage", pa.float32()),
        ("replaced", pa.bool_()),
        ("milliseconds", pa.float32()),
    ),
    # One row a (trajectory, reference), never overwritten. Δ = value_term + log_ratio − scaled_reward.
    "scores": _schema(
        ("trajectory_id", pa.int64()),
        ("round", pa.int32()),
        ("reference", pa.string()),
        ("policy", pa.string()),
        ("log_ref", pa.float32()),
        ("value_ref", pa.float32()),
        ("log_policy", pa.float32()),
        ("value_policy", pa.float32()),
        ("value_term", pa.float32()),
        ("log_ratio", pa.float32()),
        ("scaled_reward", pa.float32()),
        ("delta", pa.float32()),
        ("entropy", pa.float32()),
        ("engine_gap", pa.float32()),
        ("engine_kl", pa.float32()),
        ("kl_k1", pa.float32()),
        ("kl_k3", pa.float32()),
        ("step_deltas", _FLOATS),
        ("policy_logprobs", _FLOATS),
    ),
    # One row a trajectory fed to an update, with all that the learner needs beside the tokens.
    "draws": _schema(
        ("round", pa.int32()),
        ("update", pa.int32()),
        ("position", pa.int32()),
        ("trajectory_id", pa.int64()),
        ("source", pa.string()),
        ("probability", pa.float64()),
        ("weight", pa.float32()),
        ("staleness", pa.int32()),
        ("trajectory_round", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("shard_digest", pa.string()),
        ("reward", pa.float32()),
        ("advantage", pa.float32()),
        ("reference", pa.string()),
        ("log_ref", pa.float32()),
        ("value_ref", pa.float32()),
        ("noise_logprob", pa.float64()),
        ("noise_value", pa.float64()),
    ),
    # One row an update.
    "updates": _schema(
        ("round", pa.int32()),
        ("update", pa.int32()),
        ("trajectories", pa.int32()),
        ("tokens", pa.int64()),
        ("loss", pa.float64()),
        ("delta_abs", pa.float64()),
        ("metrics", pa.map_(pa.string(), pa.float64())),
        ("grad_norm", pa.float64()),
        ("grad_clipped", pa.bool_()),
        ("lr", pa.float64()),
        ("effective_sample_size", pa.float64()),
        ("skipped", pa.bool_()),
        ("seconds", pa.float64()),
    ),
    # One row a drawn trajectory: its residual just before the update that it was fed to. Without an update: one row
    # a live trajectory, under the policy after the round.
    "residuals": _schema(
        ("round", pa.int32()),
        ("update", pa.int32()),
        ("trajectory_id", pa.int64()),
        ("delta", pa.float32()),
        ("value_term", pa.float32()),
        ("log_ratio", pa.float32()),
        ("writer_log_ratio", pa.float32()),
    ),
    # One row a response to a held-out problem.
    "evaluations": _schema(
        ("round", pa.int32()),
        ("policy", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("problem", pa.string()),
        ("gold", pa.string()),
        ("problem_set", pa.string()),
        ("gold_mode", pa.string()),
        ("response", pa.string()),
        ("response_length", pa.int32()),
        ("finish_reason", pa.string()),
        ("verdict", pa.string()),
        ("extracted", pa.string()),
        ("correct", pa.bool_()),
    ),
    # One row a round: what is plotted and logged.
    "rounds": _schema(
        ("round", pa.int32()),
        ("ended_at", pa.timestamp("ms", tz="UTC")),
        ("trajectories", pa.int32()),
        ("tokens", pa.int64()),
        ("accuracy", pa.float64()),
        ("held_out_accuracy", pa.float64()),
        ("reward", pa.float64()),
        ("delta_abs", pa.float64()),
        ("drawn_delta_abs", pa.float64()),
        ("stored_delta_abs", pa.float64()),
        ("residual_left", pa.float64()),
        ("kl", pa.float64()),
        ("log_ratio", pa.float64()),
        ("kl_k1", pa.float64()),
        ("kl_k3", pa.float64()),
        ("entropy", pa.float64()),
        ("engine_gap", pa.float64()),
        ("engine_kl", pa.float64()),
        ("engine_lag", pa.float64()),
        ("response_length", pa.float64()),
        ("truncated", pa.float64()),
        ("unjudged", pa.float64()),
        ("overlong_penalty", pa.float64()),
        ("groups_replaced", pa.int32()),
        ("staleness", pa.float64()),
        ("effective_sample_size", pa.float64()),
        ("off_policy_q05", pa.float64()),
        ("off_policy_q25", pa.float64()),
        ("off_policy_q50", pa.float64()),
        ("off_policy_q75", pa.float64()),
        ("off_policy_q95", pa.float64()),
        ("off_policy_ess", pa.float64()),
        ("loss", pa.float64()),
        ("grad_norm", pa.float64()),
        ("grad_clipped", pa.float64()),
        ("rollouts_seconds", pa.float64()),
        ("verification_seconds", pa.float64()),
        ("consistency_seconds", pa.float64()),
        ("sampling_seconds", pa.float64()),
        ("learning_seconds", pa.float64()),
        ("evaluation_seconds", pa.float64()),
        ("other_seconds", pa.float64()),
        ("rollout_tokens_per_second", pa.float64()),
        ("learner_tokens_per_second", pa.float64()),
    ),
}

# The endings of columns with clock readings: they differ from run to run, so no digest may depend on them.
_CLOCKED = ("milliseconds", "seconds", "_per_second", "ended_at")


@dataclass(frozen=True)
class TableFile:
    """One published Parquet file. `path` is relative to the run folder."""

    table: Table
    path: str
    rows: int
    sha256: str
    content: str
    """The digest of the rows without clock readings: the same in a run and in its repetition."""

    def __post_init__(self) -> None:
        """Raises ValueError for a path that leads out of the run directory, or a table that reval does not write.

        A manifest may come from somebody else, and what it lists is read, quarantined and deleted.
        """
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0] == "/" or ".." in parts or self.table not in SCHEMAS:
            raise ValueError(f"lists {self.path!r} of table {self.table!r}, which is no file of a run")


@dataclass(frozen=True)
class Manifest:
    """What a stage left: small enough to be passed between tasks and kept as a task's result."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    stage: str
    round: int
    key: str
    """The digest of everything that the outcome depends on."""
    files: tuple[TableFile, ...] = ()
    seconds: float = 0.0
    ended_at: float = 0.0
    """Seconds since the epoch."""
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What a later stage's key is built from."""
        return digest(self.stage, self.key, [file.content for file in self.files])

    def files_of(self, table: Table) -> list[TableFile]:
        """The manifest's files of `table`, in order."""
        return [file for file in self.files if file.table == table]

    def file(self, table: Table) -> TableFile:
        """The manifest's one file of `table`."""
        (found,) = self.files_of(table)
        return found

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_json`."""
        files = tuple(TableFile(**file) for file in value["files"])
        return cls(**{**value, "files": files})


_MANIFEST = TypeAdapter(Manifest)
"""Checks the types of what a file says."""


def publish_table(directory: Path, path: str, table: Table, rows: pa.Table) -> TableFile:
    """Write `rows` to `folder/path` whole or not at all.

    Raises ValueError if the columns are not those of the table's schema.
    """
    rows = rows.cast(SCHEMAS[table]).replace_schema_metadata(SCHEMAS[table].metadata)
    kinds = dict(zip(rows.schema.names, rows.schema.types, strict=True))
    strings = [name for name, kind in kinds.items() if pa.types.is_string(kind)]
    floats = [name for name, kind in kinds.items() if pa.types.is_floating(kind)]
    float_lists = [f"{name}.list.element" for name, kind in kinds.items() if kind == _FLOATS]
    publish_file(
        directory / path,
        lambda partial: pq.write_table(
            rows,
            partial,
            compression="zstd",
            compression_level=3,
            row_group_size=4096,
            # Dictionaries suit repeated strings; floats compress better split by byte.
            use_dictionary=strings,
            column_encoding=dict.fromkeys(floats + float_lists, "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
        ),
    )
    return TableFile(table, path, rows.num_rows, file_digest(directory / path), content_digest(rows))


def content_digest(rows: pa.Table) -> str:
    """The sha256 of a table's rows, clock readings left out."""
    kept = rows.select([name for name in rows.column_names if not name.endswith(_CLOCKED)])
    sink = hashlib.sha256()
    # Taking every row clears the memory under nulls, which may hold anything.
    for batch in kept.take(pa.array(range(rows.num_rows), pa.int64())).combine_chunks().to_batches():
        sink.update(batch.serialize())
    return sink.hexdigest()


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a published file.

    Raises Damaged, naming the file, if it is gone or its pages do not hold what was written.
    """
    try:
        return pq.read_table(
            path, columns=columns and list(columns), page_checksum_verification=True, partitioning=None
        )
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise CorruptData(f"{path}: cannot be read ({error})") from error


def schema_version(path: Path) -> str:
    """The version of the schemas that a published file was written by."""
    return str(pq.read_schema(path).metadata[b"reval.schema_version"].decode())


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Publish a manifest: from now on what it lists exists."""
    publish_sealed(path, manifest.to_json())


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`, or None where nothing has been published.

    Raises Damaged if it is there and not a manifest.
    """
    if not path.exists():
        return None
    try:
        manifest = _MANIFEST.validate_python(read_sealed(path))
    except (CorruptData, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CorruptData(f"{path}: is no manifest ({reason.removeprefix(f'{path}: ')})") from error
    return replace(manifest, info=Record(manifest.info, path))
