"""An evaluation's folder: the sittings in it, each of one policy over one set of problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reval_core.facts import Manifest
from reval_core.files import publish_sealed, read_sealed
from reval_core.run_folder import STAGES, RunFolder, existing_run


class EvaluationFolder(RunFolder):
    """A folder laid out as a run's, in which a sitting stands where a run has a round."""

    unit = "sitting"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.protocol = self.path / "evaluation.yaml"
        """What was asked for last, in full."""
        self.current = self.path / "sittings.json"
        """By policy and problem set: the sitting that was asked for last."""
        self.results = self.path / "results.json"
        self.table = self.path / "results.md"

    def sitting(self, key: str) -> int:
        """The number of the sitting that `key` names: the one that it has, or the next free one. From 1."""
        notes = sorted(self.path.glob("rollouts/sitting=?????/sitting.json"))
        for note in notes:
            if read_sealed(note)["key"] == key:
                return int(note.parent.name[-5:])
        number = max((int(note.parent.name[-5:]) for note in notes), default=0) + 1
        publish_sealed((self.path / self.shard(number, 0)).with_name("sitting.json"), {"key": key})
        return number

    def make_current(self, policy: str, sittings: Mapping[str, int]) -> None:
        """From now on these are the policy's sittings for these sets. Earlier ones are kept, and not shown."""
        known = self._current()
        publish_sealed(self.current, {**known, policy: {**known.get(policy, {}), **sittings}})

    def manifests(self, stages: Sequence[str] = STAGES) -> list[Manifest]:
        """Those of the current sittings: no two are of the same policy and problem set."""
        shown = {number for sittings in self._current().values() for number in sittings.values()}
        return [one for one in super().manifests(stages) if one.round in shown]

    def _current(self) -> dict[str, dict[str, int]]:
        return read_sealed(self.current) if self.current.exists() else {}


def published_facts(path: Path) -> list[Manifest]:
    """What the run or the evaluation in a folder has published. Raises InputError if there is neither."""
    evaluation = EvaluationFolder(path)
    folder = evaluation if evaluation.protocol.exists() else existing_run(path)
    return folder.manifests()
