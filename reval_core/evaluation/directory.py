"""The directory of an evaluation and its benchmark runs, each of one policy on one problem set."""

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
    """A directory laid out like a training run's, with benchmark runs in place of rounds."""

    unit = "sitting"
    option = "--out"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.current = self.path / "sittings.json"
        """Maps a policy to its most recent settings and their benchmark runs."""
        self.results = self.path / "results.json"
        self.table = self.path / "results.md"

    def source(self) -> str | None:
        """Return the model or run that was evaluated here last, if any."""
        if not self.protocol.exists():
            return None
        return str(read_section(self.protocol).get("model"))

    def benchmark(self, key: str) -> int:
        """Return the number of the benchmark run with this key, or assign the next free one. Numbers start at 1."""
        notes = sorted(self.path.glob("rollouts/sitting=?????/sitting.json"))
        for note in notes:
            if read_sealed(note)["key"] == key:
                return int(note.parent.name[-5:])
        number = max((int(note.parent.name[-5:]) for note in notes), default=0) + 1
        publish_sealed((self.path / self.shard(number, 0)).with_name("sitting.json"), {"key": key})
        return number

    def make_current(self, policy: str, settings: str, name: str, number: int) -> None:
        """Make this the policy's current benchmark run on a problem set.

        Benchmark runs under other settings, and earlier ones on the same set, are kept but no longer shown.

        Args:
            policy: Identity of the policy.
            settings: Digest of the settings.
            name: Name of the problem set.
            number: Number of the benchmark run.
        """
        known = self._current()
        before = known.get(policy, {})
        others = before["sittings"] if before.get("settings") == settings else {}
        publish_sealed(
            self.current, {**known, policy: {"settings": settings, "sittings": {**others, name: number}}}
        )

    def manifests(self, stages: Sequence[str] = STAGES) -> list[Manifest]:
        """Return the manifests of the current benchmark runs: at most one run per policy and problem set."""
        return self.manifests_of(
            {number for one in self._current().values() for number in one["sittings"].values()}, stages
        )

    def manifests_of(self, benchmarks: Collection[int], stages: Sequence[str] = STAGES) -> list[Manifest]:
        """Return the manifests of these benchmark runs, current or not."""
        return [one for one in super().manifests(stages) if one.round in benchmarks]

    def _current(self) -> dict[str, Any]:
        return read_sealed(self.current) if self.current.exists() else {}


def published_tables(path: Path) -> list[Manifest]:
    """Return the published manifests of the run or evaluation in a directory.

    Raises:
        InputError: The directory holds neither.
    """
    evaluation = EvaluationDirectory(path)
    check_entries(evaluation.path)
    directory = evaluation if evaluation.protocol.exists() else existing_run(path)
    return directory.manifests()
