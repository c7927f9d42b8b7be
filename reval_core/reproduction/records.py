"""The recorded results of a figure's runs, read by SQL from their published tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from reval_core.evaluation.directory import published_tables
from reval_core.replay_buffer.index import sql_views
from reval_core.reproduction.study import Unit
from reval_core.storage.run_directory import RunDirectory

# Each query is executed on each run separately, as by `reval sql RUN`.
ROUNDS = """
SELECT
    round, accuracy, held_out_accuracy, kl, residual_left, tokens, updates, largest_gradient,
    rollouts_seconds + verification_seconds AS generation_seconds,
    consistency_seconds + sampling_seconds + learning_seconds AS learning_seconds,
    rollouts_seconds + verification_seconds + consistency_seconds + sampling_seconds + learning_seconds
        + evaluation_seconds + other_seconds AS seconds
FROM rounds JOIN (
    SELECT round, count(*) AS updates, max(grad_norm) AS largest_gradient FROM updates GROUP BY round
) USING (round)
ORDER BY round
""".strip()
EVALUATED = """
SELECT round, problem_set, avg(correct::INTEGER) AS accuracy
FROM evaluations GROUP BY ALL ORDER BY ALL
""".strip()


class Record:
    """A finished run of a figure."""

    def __init__(self, unit: Unit) -> None:
        self.arm, self.level, self.seed = unit.arm, unit.level, unit.seed
        self.config, self.path = unit.config, unit.path

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """One row per round."""
        return self._ask(ROUNDS)

    @cached_property
    def evaluated(self) -> dict[str, dict[int, float]]:
        """Accuracy by problem set and round; 0 is before training."""
        found: dict[str, dict[int, float]] = {}
        for row in self._ask(EVALUATED):
            found.setdefault(row["problem_set"], {})[row["round"]] = row["accuracy"]
        return found

    @property
    def resets(self) -> int:
        """Number of reference resets."""
        return len(RunDirectory(self.path).manifests(("reference_reset",)))

    def rounds_to(self, accuracy: float) -> int | None:
        """Return the first round whose policy was measured at this accuracy or above; None if none was."""
        return next((row["round"] for row in self.rounds if (row["held_out_accuracy"] or 0.0) >= accuracy), None)

    def spent(self, name: str, rounds: int | None = None) -> float:
        """Return the sum of a column over the first `rounds` rounds, or over all."""
        return float(sum(row[name] for row in self.rounds[:rounds]))

    def _ask(self, query: str) -> list[dict[str, Any]]:
        with sql_views(self.path, published_tables(self.path)) as views:
            rows: list[dict[str, Any]] = views.sql(query).to_arrow_table().to_pylist()
        return rows


def of(records: Sequence[Record], arm: str, level: str | None = None) -> list[Record]:
    """Return the runs of an arm, on one prompt or on all."""
    return [one for one in records if one.arm == arm and (level is None or one.level == level)]


def arms(records: Sequence[Record]) -> list[str]:
    """Return the names of all arms, in order."""
    return list(dict.fromkeys(one.arm for one in records))


def levels(records: Sequence[Record]) -> list[str]:
    """Return the levels of the prompts, in order."""
    return list(dict.fromkeys(one.level for one in records if one.level is not None))
