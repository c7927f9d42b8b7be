"""What all stages share: a key, work that is done once, and a manifest published last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa

from reval_core.atomic_files import digest
from reval_core.errors import CorruptData
from reval_core.pipeline.run_context import explained_disk
from reval_core.planning.out_of_memory import explained_memory
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest, TableFile, publish_table


@dataclass
class Outcome:
    """What a stage's work leaves: published files, and figures for the manifest."""

    files: list[TableFile] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)


class Host(Protocol):
    """What a stage needs of the session that it works for."""

    kept: set[str]
    stage_now: tuple[str, int]
    worked_seconds: float

    @property
    def directory(self) -> RunDirectory:
        """Where its facts lie."""

    def title(self, stage: str, round: int) -> str:
        """What people call a stage at work."""

    def memory_advice(self, stage: str) -> str:
        """The settings that a stage needs less memory with."""

    def take_in(self, manifest: Manifest) -> None:
        """Know of what a stage has published."""

    def rewind(self, stage: str, round: int) -> None:
        """Forget what comes after a stage that is made again."""


@dataclass(frozen=True)
class Stage:
    """A named piece of work of a round. Call it with a session, the round, and the stage's inputs."""

    name: str
    inputs: Callable[..., list[Any]]
    """All that the outcome depends on, as JSON: settings, digests of what comes before, seeds."""
    work: Callable[..., Outcome]
    stands: Callable[[Any, Manifest], bool] = lambda context, manifest: True
    """Whether what the stage left beside the files of its manifest is still there."""

    def key(self, context: Host, round: int, *inputs: Any) -> str:
        """The digest that names this stage's outcome."""
        return digest(self.name, round, self.inputs(context, round, *inputs))

    def published(self, context: Host, round: int, *inputs: Any) -> Manifest | None:
        """What this stage has left, if all of it still stands.

        Raises Damaged if it was left under another key: what a run has recorded is never made anew from other
        inputs, since everything after it would have to be.
        """
        found = context.directory.manifest(self.name, round)
        if found is None:
            return None
        if found.key != self.key(context, round, *inputs):
            raise CorruptData(
                f"{context.directory.manifest_path(self.name, round)}: was made from other inputs than what stands "
                "before it now; something that this run recorded was changed"
            )
        return found if context.directory.holds(found) and self.stands(context, found) else None

    def kept(self, context: Host, round: int, *inputs: Any) -> Manifest | None:
        """As `published`, for a run that passes the stage: the store holds it then, and the session knows."""
        found = self.published(context, round, *inputs)
        if found is not None:
            context.kept.add(self.name)
            context.take_in(found)
        return found

    def __call__(self, context: Host, round: int, *inputs: Any) -> Manifest:
        """The stage's manifest: as published before, or published now.

        Raises Damaged if something lost was made again and came out different.
        """
        found = self.kept(context, round, *inputs)
        if found is not None:
            return found
        context.stage_now = (self.name, round)
        context.rewind(self.name, round)
        title = context.title(self.name, round)
        with explained_disk(context.directory), explained_memory(title, lambda: context.memory_advice(self.name)):
            manifest = self._made(context, round, *inputs)
            context.directory.publish(manifest)
            context.take_in(manifest)
        return manifest

    def _made(self, context: Host, round: int, *inputs: Any) -> Manifest:
        started = time.perf_counter()
        outcome = self.work(context, round, *inputs)
        seconds = time.perf_counter() - started
        context.worked_seconds += seconds
        files = tuple(outcome.files)
        recorded = context.directory.manifest(self.name, round)
        if recorded is not None:
            _check_equal(context, recorded, outcome)
            return replace(recorded, files=files)  # when it was first made, and how long that took, stays on record
        key = self.key(context, round, *inputs)
        return Manifest(self.name, round, key, files, seconds, ended_at=time.time(), info=outcome.info)


def stage(
    inputs: Callable[..., list[Any]], stands: Callable[[Any, Manifest], bool] = lambda context, manifest: True
) -> Callable[[Callable[..., Outcome]], Stage]:
    """Make a stage of a function `(session, round, *inputs) -> Outcome`; the function's name names it."""
    return lambda work: Stage(work.__name__, inputs, work, stands)


def _check_equal(context: Host, recorded: Manifest, outcome: Outcome) -> None:
    """Raise Damaged unless what was made again is what was recorded."""
    before, now = ({file.path: file.content for file in files} for files in (recorded.files, outcome.files))
    differing = [str(context.directory.path / path) for path in before | now if before.get(path) != now.get(path)]
    if recorded.info.get("content") != outcome.info.get("content"):
        differing.append(f"the checkpoint of round {recorded.round}")
    if differing:
        raise CorruptData(
            f"{', '.join(differing)}: was lost, and came out different when it was made again; put back a copy, or "
            "start a new run"
        )


def publish(context: Host, round: int, table: str, rows: pa.Table, name: str | None = None) -> TableFile:
    """Publish a round's rows of a table, under the table's name or another."""
    return publish_table(context.directory.path, context.directory.facts(round, name or table), table, rows)


def settings(section: Any) -> Any:
    """A section of the config as JSON, for a key."""
    return section.model_dump(mode="json")
