"""What all stages share: a key, work that is done once, and a manifest published last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from reval_core.facts import FactFile, Manifest, publish_table
from reval_core.files import digest
from reval_core.session import Session


@dataclass
class Outcome:
    """What a stage's work leaves: published files, and figures for the manifest."""

    files: list[FactFile] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A named piece of work of a round. Call it with a session, the round, and the stage's inputs."""

    name: str
    inputs: Callable[..., list[Any]]
    """All that the outcome depends on, as JSON: settings, digests of what comes before, seeds."""
    work: Callable[..., Outcome]

    def key(self, session: Session, round: int, *inputs: Any) -> str:
        """The digest that names this stage's outcome."""
        return digest(self.name, round, self.inputs(session, round, *inputs))

    def published(self, session: Session, round: int, *inputs: Any) -> Manifest | None:
        """What this stage has left under the same key, if all of it still stands."""
        found = session.folder.manifest(self.name, round)
        if found is None or found.key != self.key(session, round, *inputs):
            return None
        return found if all((session.folder.path / file.path).exists() for file in found.files) else None

    def __call__(self, session: Session, round: int, *inputs: Any) -> Manifest:
        """The stage's manifest: as published before, or published now."""
        found = self.published(session, round, *inputs)
        if found is not None:
            session.kept.add(self.name)
            return found
        session.stage_now = (self.name, round)
        started = time.perf_counter()
        outcome = self.work(session, round, *inputs)
        seconds = time.perf_counter() - started
        manifest = Manifest(
            stage=self.name,
            round=round,
            key=self.key(session, round, *inputs),
            files=tuple(outcome.files),
            seconds=seconds,
            ended_at=time.time(),
            info=outcome.info,
        )
        session.folder.publish(manifest)
        session.store.ingest(manifest)
        session.worked_seconds += seconds
        return manifest


def stage(inputs: Callable[..., list[Any]]) -> Callable[[Callable[..., Outcome]], Stage]:
    """Make a stage of a function `(session, round, *inputs) -> Outcome`; the function's name names it."""
    return lambda work: Stage(work.__name__, inputs, work)


def publish(session: Session, round: int, table: str, rows: pa.Table, name: str | None = None) -> FactFile:
    """Publish a round's rows of a table, under the table's name or another."""
    return publish_table(session.folder.path, session.folder.facts(round, name or table), table, rows)


def settings(section: Any) -> Any:
    """A section of the config as JSON, for a key."""
    return section.model_dump(mode="json")
