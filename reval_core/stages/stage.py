"""The definition of a stage: a key, work that runs once per key, and a manifest that is published last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import pyarrow as pa

from reval_core.atomic_files import digest
from reval_core.errors import CorruptData
from reval_core.pipeline.stage_context import StageContext
from reval_core.planning.out_of_memory import explained_memory
from reval_core.storage.full_disk import explained_disk
from reval_core.storage.tables import Manifest, TableFile, publish_table


@dataclass
class Outcome:
    """The result of a stage's work: published files, and values for the manifest."""

    files: list[TableFile] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)


Context = TypeVar("Context", bound=StageContext)
Inputs = ParamSpec("Inputs")


@dataclass(frozen=True)
class Stage(Generic[Context, Inputs]):
    """A named unit of work of a round. Call it with a context, the round, and the stage's inputs."""

    name: str
    inputs: Callable[Concatenate[Context, int, Inputs], list[Any]]
    """Everything that the outcome depends on, as JSON: settings, digests of inputs, seeds."""
    work: Callable[Concatenate[Context, int, Inputs], Outcome]
    is_complete: Callable[[Context, Manifest], bool] = lambda context, manifest: True
    """Whether everything that the stage left in addition to the files of its manifest still exists."""

    def key(self, context: Context, round: int, *inputs: Inputs.args, **named: Inputs.kwargs) -> str:
        """The digest that identifies this stage's outcome."""
        return digest(self.name, round, self.inputs(context, round, *inputs, **named))

    def published(
        self, context: Context, round: int, *inputs: Inputs.args, **named: Inputs.kwargs
    ) -> Manifest | None:
        """The published manifest of this stage, if all of its files still exist; else None.

        Raises:
            CorruptData: If it was published under another key. Records are never replaced by results from other
                inputs, since everything after them would be invalid.
        """
        manifest = context.directory.manifest(self.name, round)
        if manifest is None:
            return None
        if manifest.key != self.key(context, round, *inputs, **named):
            raise CorruptData(
                f"{context.directory.manifest_path(self.name, round)}: was made from other inputs than the current "
                "ones; a record of this run was changed"
            )
        return manifest if context.directory.holds(manifest) and self.is_complete(context, manifest) else None

    def kept(self, context: Context, round: int, *inputs: Inputs.args, **named: Inputs.kwargs) -> Manifest | None:
        """As `published`, for a run that skips the stage: also ingests the files and records the stage as kept."""
        manifest = self.published(context, round, *inputs, **named)
        if manifest is not None:
            context.keep(manifest)
        return manifest

    def __call__(self, context: Context, round: int, *inputs: Inputs.args, **named: Inputs.kwargs) -> Manifest:
        """Run the stage, unless it has been published before.

        Returns:
            The stage's manifest, published before or now.

        Raises:
            CorruptData: If a lost file was regenerated and differs from the record.
        """
        existing = self.kept(context, round, *inputs, **named)
        if existing is not None:
            return existing
        context.begin(self.name, round)
        title = context.title(self.name, round)
        with explained_disk(context.directory), explained_memory(title, lambda: context.memory_advice(self.name)):
            manifest = self._made(context, round, *inputs, **named)
            context.publish(manifest)
        return manifest

    def _made(self, context: Context, round: int, *inputs: Inputs.args, **named: Inputs.kwargs) -> Manifest:
        started = time.perf_counter()
        outcome = self.work(context, round, *inputs, **named)
        seconds = time.perf_counter() - started
        context.worked_seconds += seconds
        files = tuple(outcome.files)
        recorded = context.directory.manifest(self.name, round)
        if recorded is not None:
            _check_equal(context, recorded, outcome)
            return replace(recorded, files=files)  # keeps the original time and duration
        key = self.key(context, round, *inputs, **named)
        return Manifest(self.name, round, key, files, seconds, ended_at=time.time(), info=outcome.info)


def stage(
    inputs: Callable[Concatenate[Context, int, Inputs], list[Any]],
    is_complete: Callable[[Context, Manifest], bool] = lambda context, manifest: True,
) -> Callable[[Callable[Concatenate[Context, int, Inputs], Outcome]], Stage[Context, Inputs]]:
    """Decorator: make a stage of a function `(context, round, *inputs) -> Outcome`, named like the function."""
    return lambda work: Stage(work.__name__, inputs, work, is_complete)


def _check_equal(context: StageContext, recorded: Manifest, outcome: Outcome) -> None:
    """Raise CorruptData unless a regenerated outcome equals the record."""
    before, now = ({file.path: file.content for file in files} for files in (recorded.files, outcome.files))
    differing = [str(context.directory.path / path) for path in before | now if before.get(path) != now.get(path)]
    if recorded.info.get("content") != outcome.info.get("content"):
        differing.append(f"the checkpoint of round {recorded.round}")
    if differing:
        raise CorruptData(
            f"{', '.join(differing)}: was lost, and differs from the record after regeneration; restore it from a "
            "backup, or start a new run"
        )


def publish(context: StageContext, round: int, table: str, rows: pa.Table, name: str | None = None) -> TableFile:
    """Publish a round's rows of a table, in a file with the table's name or another `name`."""
    return publish_table(context.directory.path, context.directory.facts(round, name or table), table, rows)


def settings(section: Any) -> Any:
    """A section of the config as JSON, for a key."""
    return section.model_dump(mode="json")
