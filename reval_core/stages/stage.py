"""What all stages share: a key, work that is done once, and a manifest published last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa

from reval_core.errors import Damaged
from reval_core.facts import FactFile, Manifest, publish_table
from reval_core.files import digest
from reval_core.run_folder import RunFolder
from reval_core.session import explained_disk
from reval_core.stages.memory import explained_memory


@dataclass
class Outcome:
    """What a stage's work leaves: published files, and figures for the manifest."""

    files: list[FactFile] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)


class Host(Protocol):
    """What a stage needs of the session that it works for."""

    kept: set[str]
    stage_now: tuple[str, int]
    worked_seconds: float

    @property
    def folder(self) -> RunFolder:
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
    stands: Callable[[Any, Manifest], bool] = lambda session, manifest: True
    """Whether what the stage left beside the files of its manifest is still there."""

    def key(self, session: Host, round: int, *inputs: Any) -> str:
        """The digest that names this stage's outcome."""
        return digest(self.name, round, self.inputs(session, round, *inputs))

    def published(self, session: Host, round: int, *inputs: Any) -> Manifest | None:
        """What this stage has left, if all of it still stands.

        Raises Damaged if it was left under another key: what a run has recorded is never made anew from other
        inputs, since everything after it would have to be.
        """
        found = session.folder.manifest(self.name, round)
        if found is None:
            return None
        if found.key != self.key(session, round, *inputs):
            raise Damaged(
                f"{session.folder.manifest_path(self.name, round)}: was made from other inputs than what stands "
                "before it now; something that this run recorded was changed"
            )
        return found if session.folder.holds(found) and self.stands(session, found) else None

    def kept(self, session: Host, round: int, *inputs: Any) -> Manifest | None:
        """As `published`, for a run that passes the stage: the store holds it then, and the session knows."""
        found = self.published(session, round, *inputs)
        if found is not None:
            session.kept.add(self.name)
            session.take_in(found)
        return found

    def __call__(self, session: Host, round: int, *inputs: Any) -> Manifest:
        """The stage's manifest: as published before, or published now.

        Raises Damaged if something lost was made again and came out different.
        """
        found = self.kept(session, round, *inputs)
        if found is not None:
            return found
        session.stage_now = (self.name, round)
        session.rewind(self.name, round)
        title = session.title(self.name, round)
        with explained_disk(session.folder), explained_memory(title, lambda: session.memory_advice(self.name)):
            manifest = self._made(session, round, *inputs)
            session.folder.publish(manifest)
            session.take_in(manifest)
        return manifest

    def _made(self, session: Host, round: int, *inputs: Any) -> Manifest:
        started = time.perf_counter()
        outcome = self.work(session, round, *inputs)
        seconds = time.perf_counter() - started
        session.worked_seconds += seconds
        files = tuple(outcome.files)
        recorded = session.folder.manifest(self.name, round)
        if recorded is not None:
            _check_equal(session, recorded, outcome)
            return replace(recorded, files=files)  # when it was first made, and how long that took, stays on record
        key = self.key(session, round, *inputs)
        return Manifest(self.name, round, key, files, seconds, ended_at=time.time(), info=outcome.info)


def stage(
    inputs: Callable[..., list[Any]], stands: Callable[[Any, Manifest], bool] = lambda session, manifest: True
) -> Callable[[Callable[..., Outcome]], Stage]:
    """Make a stage of a function `(session, round, *inputs) -> Outcome`; the function's name names it."""
    return lambda work: Stage(work.__name__, inputs, work, stands)


def _check_equal(session: Host, recorded: Manifest, outcome: Outcome) -> None:
    """Raise Damaged unless what was made again is what was recorded."""
    before, now = ({file.path: file.content for file in files} for files in (recorded.files, outcome.files))
    differing = [str(session.folder.path / path) for path in before | now if before.get(path) != now.get(path)]
    if recorded.info.get("content") != outcome.info.get("content"):
        differing.append(f"the checkpoint of round {recorded.round}")
    if differing:
        raise Damaged(
            f"{', '.join(differing)}: was lost, and came out different when it was made again; put back a copy, or "
            "start a new run"
        )


def publish(session: Host, round: int, table: str, rows: pa.Table, name: str | None = None) -> FactFile:
    """Publish a round's rows of a table, under the table's name or another."""
    return publish_table(session.folder.path, session.folder.facts(round, name or table), table, rows)


def settings(section: Any) -> Any:
    """A section of the config as JSON, for a key."""
    return section.model_dump(mode="json")
