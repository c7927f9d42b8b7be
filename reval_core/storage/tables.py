"""The tables of a run: the schema of each, and how rows are published.

Every stage publishes Parquet files and, last, a manifest that lists them with their checksums. A file that no
manifest lists is ignored. DuckDB (`reval_core.replay_buffer.index`) is an index over these files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
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
    # One row per response, as the engine returned it. docs/schema.md describes every column.
    "trajectories": _RESPONSES,
    # One row per response of a group that was cut off; the next round continues it.
    "partials": _RESPONSES,
    # One row per trajectory: the verifier's verdict and the reward for the learner.
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
    # One row per (trajectory, reference), never overwritten. Δ = value_term + log_ratio − scaled_reward.
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
    # One row per trajectory fed to an update, with everything that the learner needs besides the tokens.
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
    # One row per update.
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
    # One row per drawn trajectory: its residual just before the update that it was fed to. Without an update: one
    # row per live trajectory, under the policy after the round.
    "residuals": _schema(
        ("round", pa.int32()),
        ("update", pa.int32()),
        ("trajectory_id", pa.int64()),
        ("delta", pa.float32()),
        ("value_term", pa.float32()),
        ("log_ratio", pa.float32()),
        ("writer_log_ratio", pa.float32()),
    ),
    # One row per response to a held-out problem.
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
    # One row per round: the metrics that are plotted and logged.
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

# Suffixes of columns with clock readings: they differ from run to run, so no digest may depend on them.
_TIMING_SUFFIXES = ("milliseconds", "seconds", "_per_second", "ended_at")


@dataclass(frozen=True)
class TableFile:
    """One published Parquet file. `path` is relative to the run directory."""

    table: Table
    path: str
    rows: int
    sha256: str
    content: str
    """The digest of the rows without clock readings: identical in a repetition of the run."""

    def __post_init__(self) -> None:
        """Check the path and the table.

        A manifest may come from an untrusted source, and the files that it lists are read, quarantined and deleted.

        Raises:
            ValueError: If the path leads out of the run directory, or the table is unknown.
        """
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0] == "/" or ".." in parts or self.table not in SCHEMAS:
            raise ValueError(f"lists {self.path!r} of table {self.table!r}, which is not a file of a run")


@dataclass(frozen=True)
class Manifest:
    """The result of a stage: small enough to be passed between tasks and stored as a task's result."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    stage: str
    round: int
    key: str
    """The digest of everything that the result depends on."""
    files: tuple[TableFile, ...] = ()
    seconds: float = 0.0
    ended_at: float = 0.0
    """Seconds since the epoch."""
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The digest from which the keys of later stages are built."""
        return digest(self.stage, self.key, [file.content for file in self.files])

    def files_of(self, table: Table) -> list[TableFile]:
        """The manifest's files of `table`, in order."""
        return [file for file in self.files if file.table == table]

    def file(self, table: Table) -> TableFile:
        """The manifest's only file of `table`."""
        (file,) = self.files_of(table)
        return file

    def to_json(self) -> dict[str, Any]:
        """The manifest as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_json`."""
        files = tuple(TableFile(**file) for file in value["files"])
        return cls(**{**value, "files": files})


_MANIFEST = TypeAdapter(Manifest)
"""Validates the types of a manifest that is read from a file."""


def publish_table(directory: Path, path: str, table: Table, rows: pa.Table) -> TableFile:
    """Write `rows` to `directory/path` atomically.

    Args:
        directory: The run directory.
        path: The path of the file, relative to `directory`.
        table: The table that the rows belong to; they are cast to its schema.
        rows: The rows.

    Raises:
        ValueError: If the columns are not those of the table's schema.
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
            # Dictionary encoding suits repeated strings; floats compress better when split by byte.
            use_dictionary=strings,
            column_encoding=dict.fromkeys(floats + float_lists, "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
        ),
    )
    return TableFile(table, path, rows.num_rows, file_digest(directory / path), content_digest(rows))


def content_digest(rows: pa.Table) -> str:
    """The sha256 (hex) of a table's rows, without columns of clock readings."""
    kept = rows.select([name for name in rows.column_names if not name.endswith(_TIMING_SUFFIXES)])
    sink = hashlib.sha256()
    # Taking every row clears the memory under nulls, which is otherwise undefined.
    for batch in kept.take(pa.array(range(rows.num_rows), pa.int64())).combine_chunks().to_batches():
        sink.update(batch.serialize())
    return sink.hexdigest()


def read_table(path: Path, columns: Sequence[str] | None = None, round: int | None = None) -> pa.Table:
    """Read the rows of a published file: all columns, or `columns` in their order; all rows, or those of a round.

    Raises:
        CorruptData: If the file is missing or the checksum of a page differs; the message names the file.
    """
    try:
        return pq.read_table(
            path,
            columns=columns and list(columns),
            filters=None if round is None else pc.field("round") == round,
            page_checksum_verification=True,
            partitioning=None,
        )
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise CorruptData(f"{path}: cannot be read ({error})") from error


def schema_version(path: Path) -> str:
    """The schema version that a published file was written with."""
    return str(pq.read_schema(path).metadata[b"reval.schema_version"].decode())


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Publish a manifest: from now on the files that it lists count as published."""
    publish_sealed(path, manifest.to_json())


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`, or None if nothing has been published there.

    Raises:
        CorruptData: If the file exists but is not a manifest.
    """
    if not path.exists():
        return None
    try:
        manifest = _MANIFEST.validate_python(read_sealed(path))
    except (CorruptData, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CorruptData(f"{path}: is not a manifest ({reason.removeprefix(f'{path}: ')})") from error
    return replace(manifest, info=Record(manifest.info, path))
