"""Offline data from another run: what it contains, whether it is compatible, and its import."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from reval_core.atomic_files import file_digest, publish_sealed, read_sealed
from reval_core.config import Config, StoredRollouts
from reval_core.config.loader import load_config
from reval_core.errors import CorruptData, InputError
from reval_core.model.loading import load_tokenizer, tokenizer_digest, tokenizer_of
from reval_core.replay_buffer.trajectories import IDS_PER_ROUND
from reval_core.storage.run_directory import RunDirectory, existing_run
from reval_core.storage.tables import SCHEMA_VERSION, SCHEMAS, TableFile, read_table, schema_version


@dataclass(frozen=True)
class StoredRound:
    """A round of the stored run: its trajectories, and its verdicts in the same order."""

    round: int
    shards: tuple[TableFile, ...]
    verdicts: TableFile

    @property
    def rows(self) -> int:
        """The number of its trajectories."""
        return sum(file.rows for file in self.shards)


@dataclass(frozen=True)
class StoredRun:
    """The offline data that a run imports from another: the files that existed when it started."""

    path: str
    rounds: tuple[StoredRound, ...]
    tokens: int
    """The number of tokens of all prompts and responses."""

    @property
    def rows(self) -> int:
        """The number of its trajectories."""
        return sum(one.rows for one in self.rounds)

    @property
    def shards(self) -> list[TableFile]:
        """The shards of all rounds, in order."""
        return [file for one in self.rounds for file in one.shards]


_STORED_RUN = TypeAdapter(StoredRun)
"""Validates the types of a record that is read from a file."""


def _read_note(path: Path) -> StoredRun:
    """The record written by `keep_stored_run`. Raises CorruptData, naming the file, if it was changed."""
    try:
        return _STORED_RUN.validate_python(read_sealed(path))
    except ValidationError as error:
        raise CorruptData(f"{path}: is not a record of a stored run ({error.errors()[0]['msg']})") from error


def stored_run(directory: RunDirectory, settings: StoredRollouts) -> StoredRun:
    """The offline data of the run in `directory`.

    Returns:
        The data recorded when the run started or, for a new run, what the stored run contains now.

    Raises:
        InputError: If the stored run does not exist, was pruned, or has no verified trajectories yet.
    """
    if directory.stored.exists():
        return _read_note(directory.stored)
    source = existing_run(Path(settings.run))
    if source.pruned_to():
        raise InputError(
            f"{source.path}: rollouts.run: was pruned, and the tokens of its first {source.pruned_to()} rounds are "
            "deleted; use a run that was not pruned"
        )
    rounds = []
    for manifest in source.manifests():
        if manifest.stage == "verification":
            rollouts = source.manifest("rollouts", manifest.round)
            assert rollouts is not None, "verdicts are published after their trajectories"
            rounds.append(
                StoredRound(manifest.round, tuple(rollouts.files_of("trajectories")), manifest.file("verdicts"))
            )
    if not rounds:
        raise InputError(
            f"{source.path}: rollouts.run: contains no verified trajectories yet; let it finish a round"
        )
    files = [source.path / file.path for one in rounds for file in one.shards]
    return StoredRun(str(source.path), tuple(rounds), sum(map(_tokens, files)))


def keep_stored_run(directory: RunDirectory, stored: StoredRun) -> None:
    """Record what is imported, so that later changes of the stored run have no effect."""
    if not directory.stored.exists():
        publish_sealed(directory.stored, asdict(stored))


def check_stored_run(directory: RunDirectory, stored: StoredRun, config: Config) -> None:
    """Check that tokens, prompts and rewards mean the same in this config as in the stored run.

    Checked only once, before the run starts.

    Raises:
        InputError: If they differ; the message names both values.
    """
    if directory.stored.exists():
        return
    source = RunDirectory(Path(stored.path))
    version = schema_version(source.path / stored.shards[0].path)
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{stored.path}: its tables have schema version {version}, but this reval reads version "
            f"{SCHEMA_VERSION}; train on it with the reval version that wrote it, or write its responses to a file "
            "and import them"
        )
    stored_config = load_config(source.config).model_dump(mode="json")
    wanted = config.model_dump(mode="json")
    max_tokens = ("rollouts.max_tokens", stored_config["rollouts"]["max_tokens"], wanted["rollouts"]["max_tokens"])
    for name, theirs, ours in (
        ("problems.prompt", stored_config["problems"]["prompt"], wanted["problems"]["prompt"]),
        ("reward", stored_config["reward"], wanted["reward"]),
        *([max_tokens] if config.reward.overlong else []),
    ):
        if theirs != ours:
            raise InputError(
                f"{stored.path}: {name}: its trajectories were made with {theirs}, but this config has {ours}; "
                f"prompts and rewards are imported unchanged, so set {name} to the stored run's value"
            )
    checkpoint = source.base if stored_config["model"]["lora"] else source.checkpoint(0)
    theirs = tokenizer_digest(load_tokenizer(checkpoint))
    if theirs != tokenizer_digest(tokenizer_of(config.model)):
        model = config.model.path or "model.tiny"
        raise InputError(
            f"{stored.path}: its tokens are those of {stored_config['model']['path'] or 'model.tiny'}, but the "
            f"tokenizer of {model} differs; set model to the stored run's, or import the responses with this model"
        )


def imported_shard(stored: StoredRun, number: int, first: int) -> pa.Table:
    """The rows of a stored run's shard, renumbered as a shard of round 0.

    Args:
        stored: The offline data.
        number: The number of the shard.
        first: The index of its first row within round 0.

    Raises:
        CorruptData: If the file differs from what was recorded.
    """
    rows = _read(stored, stored.shards[number])
    count = len(rows)
    places = {
        "trajectory_id": range(first, first + count),
        "round": [0] * count,
        "shard": [number] * count,
        "row": range(count),
    }
    columns = {name: places.get(name, rows.column(name)) for name in SCHEMAS["trajectories"].names}
    return pa.table(columns, schema=SCHEMAS["trajectories"])


def imported_verdicts(stored: StoredRun) -> pa.Table:
    """The verdicts of all imported trajectories, in the order of the trajectories.

    Raises:
        CorruptData: If a file differs from what was recorded.
    """
    parts = []
    for one in stored.rounds:
        rows = _read(stored, one.verdicts)
        first = one.round * IDS_PER_ROUND
        if rows.column("trajectory_id").to_pylist() != list(range(first, first + one.rows)):
            raise CorruptData(f"{stored.path}/{one.verdicts.path}: is not in the order of the trajectories")
        parts.append(rows)
    rows = pa.concat_tables(parts)
    places = {"trajectory_id": range(len(rows)), "round": [0] * len(rows)}
    return pa.table({name: places.get(name, rows.column(name)) for name in rows.column_names})


def _read(stored: StoredRun, file: TableFile) -> pa.Table:
    path = Path(stored.path, file.path)
    if not path.exists() or file_digest(path) != file.sha256:
        raise CorruptData(f"{path}: is missing or has changed since this run started to import it")
    return read_table(path)


def _tokens(path: Path) -> int:
    lengths = read_table(path, ("prompt_length", "response_length"))
    return sum(pc.sum(lengths.column(name)).as_py() or 0 for name in lengths.column_names)
