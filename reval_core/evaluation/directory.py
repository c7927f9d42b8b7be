"""An evaluation's folder: the sittings in it, each of one policy over one set of problems."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from reval_core.atomic_files import publish_sealed, read_sealed
from reval_core.config.yaml_files import read_section
from reval_core.storage.entries import check_entries
from reval_core.storage.run_directory import STAGES, RunDirectory, existing_run
from reval_core.storage.tables import Manifest


class EvaluationDirectory(RunDirectory):
    """A folder laid out as a run's, in which a sitting stands where a run has a round."""

    unit = "sitting"
    option = "--out"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.current = self.path / "sittings.json"
        """By policy: the settings and the sittings that were asked for last."""
        self.results = self.path / "results.json"
        self.table = self.path / "results.md"

    def source(self) -> str | None:
        """The model or run that was evaluated here last, if any was."""
        if not self.protocol.exists():
            return None
        return str(read_section(self.protocol).get("model"))

    def benchmark(self, key: str) -> int:
        """The number of the sitting that `key` names: the one that it has, or the next free one. From 1."""
        notes = sorted(self.path.glob("rollouts/sitting=?????/sitting.json"))
        for note in notes:
            if read_sealed(note)["key"] == key:
                return int(note.parent.name[-5:])
        number = max((int(note.parent.name[-5:]) for note in notes), default=0) + 1
        publish_sealed((self.path / self.shard(number, 0)).with_name("sitting.json"), {"key": key})
        return number

    def make_current(self, policy: str, settings: str, name: str, number: int) -> None:
        """From now on this is the policy's sitting for a problem set, under settings that a digest names.

        Those under other settings, and earlier ones for the set, are kept and not shown.
        """
        known = self._current()
        before = known.get(policy, {})
        others = before["sittings"] if before.get("settings") == settings else {}
        publish_sealed(
            self.current, {**known, policy: {"settings": settings, "sittings": {**others, name: number}}}
        )

    def manifests(self, stages: Sequence[str] = STAGES) -> list[Manifest]:
        """Those of the current sittings: no two are of the same policy and problem set."""
        return self.manifests_of(
            {number for one in self._current().values() for number in one["sittings"].values()}, stages
        )

    def manifests_of(self, benchmarks: Collection[int], stages: Sequence[str] = STAGES) -> list[Manifest]:
        """Those of these sittings, whether they are current or not."""
        return [one for one in super().manifests(stages) if one.round in benchmarks]

    def _current(self) -> dict[str, Any]:
        return read_sealed(self.current) if self.current.exists() else {}


def published_tables(path: Path) -> list[Manifest]:
    """What the run or the evaluation in a folder has published. Raises InputError if there is neither."""
    evaluation = EvaluationDirectory(path)
    check_entries(evaluation.path)
    directory = evaluation if evaluation.protocol.exists() else existing_run(path)
    return directory.manifests()
