"""The stored run that a run learns from: what it holds, whether it fits, and what is taken over."""

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
        """Its trajectories."""
        return sum(file.rows for file in self.shards)


@dataclass(frozen=True)
class StoredRun:
    """What a run takes over from another: the files that were there when it began."""

    path: str
    rounds: tuple[StoredRound, ...]
    tokens: int
    """Those of all prompts and responses."""

    @property
    def rows(self) -> int:
        """Its trajectories."""
        return sum(one.rows for one in self.rounds)

    @property
    def shards(self) -> list[TableFile]:
        """The shards of all rounds, in order."""
        return [file for one in self.rounds for file in one.shards]


_STORED_RUN = TypeAdapter(StoredRun)
"""Checks the types of what a file says."""


def _read_note(path: Path) -> StoredRun:
    """What `keep_stored_run` noted. Raises Damaged, naming the file, if it was changed."""
    try:
        return _STORED_RUN.validate_python(read_sealed(path))
    except ValidationError as error:
        raise CorruptData(f"{path}: is no record of a stored run ({error.errors()[0]['msg']})") from error


def stored_run(directory: RunDirectory, settings: StoredRollouts) -> StoredRun:
    """What the run in `folder` takes over: as it noted when it began, or else what the stored run holds now.

    Raises InputError if there is no such run, or nothing in it is verified yet.
    """
    if directory.stored.exists():
        return _read_note(directory.stored)
    source = existing_run(Path(settings.run))
    if source.pruned_to():
        raise InputError(
            f"{source.path}: rollouts.run: was pruned, and the tokens of its first {source.pruned_to()} rounds are "
            "gone; take a run that was not"
        )
    rounds = []
    for manifest in source.manifests():
        if manifest.stage == "verification":
            rollouts = source.manifest("rollouts", manifest.round)
            assert rollouts is not None, "verdicts come after their trajectories"
            rounds.append(
                StoredRound(manifest.round, tuple(rollouts.files_of("trajectories")), manifest.file("verdicts"))
            )
    if not rounds:
        raise InputError(f"{source.path}: rollouts.run: holds no verified trajectories yet; let it finish a round")
    files = [source.path / file.path for one in rounds for file in one.shards]
    return StoredRun(str(source.path), tuple(rounds), sum(map(_tokens, files)))


def keep_stored_run(directory: RunDirectory, stored: StoredRun) -> None:
    """Note what is taken over: what the stored run does from now on makes no difference."""
    if not directory.stored.exists():
        publish_sealed(directory.stored, asdict(stored))


def check_stored_run(directory: RunDirectory, stored: StoredRun, config: Config) -> None:
    """See that this config's run means by tokens, prompts and rewards what the stored run does.

    It is looked at once, before the run begins. Raises InputError naming both.
    """
    if directory.stored.exists():
        return
    source = RunDirectory(Path(stored.path))
    version = schema_version(source.path / stored.shards[0].path)
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{stored.path}: its tables are of version {version}, and this reval reads version {SCHEMA_VERSION}; "
            "learn from it with the reval that made it, or write its responses to a file and import them"
        )
    found = load_config(source.config).model_dump(mode="json")
    wanted = config.model_dump(mode="json")
    longest = ("rollouts.max_tokens", found["rollouts"]["max_tokens"], wanted["rollouts"]["max_tokens"])
    for name, theirs, ours in (
        ("problems.prompt", found["problems"]["prompt"], wanted["problems"]["prompt"]),
        ("reward", found["reward"], wanted["reward"]),
        *([longest] if config.reward.overlong else []),
    ):
        if theirs != ours:
            raise InputError(
                f"{stored.path}: {name}: its trajectories were made with {theirs}, and this config says {ours}; "
                f"prompts and rewards are taken over as they are, so set {name} to theirs"
            )
    checkpoint = source.base if found["model"]["lora"] else source.checkpoint(0)
    theirs = tokenizer_digest(load_tokenizer(checkpoint))
    if theirs != tokenizer_digest(tokenizer_of(config.model)):
        model = config.model.path or "model.tiny"
        raise InputError(
            f"{stored.path}: its tokens are those of {found['model']['path'] or 'model.tiny'}, and the tokenizer "
            f"of {model} reads them otherwise; set model to theirs, or import the responses with this model"
        )


def taken_shard(stored: StoredRun, number: int, first: int) -> pa.Table:
    """The rows of the stored run's shard `number`, as those of a shard of round 0 whose first place is `first`.

    Raises Damaged if the file is not what was noted.
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


def taken_verdicts(stored: StoredRun) -> pa.Table:
    """The verdicts of all trajectories taken over, in their order.

    Raises Damaged if a file is not what was noted.
    """
    parts = []
    for one in stored.rounds:
        rows = _read(stored, one.verdicts)
        first = one.round * IDS_PER_ROUND
        if rows.column("trajectory_id").to_pylist() != list(range(first, first + one.rows)):
            raise CorruptData(f"{stored.path}/{one.verdicts.path}: is not in the order of its trajectories")
        parts.append(rows)
    rows = pa.concat_tables(parts)
    places = {"trajectory_id": range(len(rows)), "round": [0] * len(rows)}
    return pa.table({name: places.get(name, rows.column(name)) for name in rows.column_names})


def _read(stored: StoredRun, file: TableFile) -> pa.Table:
    path = Path(stored.path, file.path)
    if not path.exists() or file_digest(path) != file.sha256:
        raise CorruptData(f"{path}: is gone or not what it was when this run began to take it over")
    return read_table(path)


def _tokens(path: Path) -> int:
    lengths = read_table(path, ("prompt_length", "response_length"))
    return sum(pc.sum(lengths.column(name)).as_py() or 0 for name in lengths.column_names)
