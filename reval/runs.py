"""Reading a run: its tables as pandas DataFrames, and SQL over them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from reval.flows.querying import query_frame
from reval_core.errors import InputError
from reval_core.evaluation.directory import published_tables
from reval_core.storage.tables import SCHEMAS, Table

if TYPE_CHECKING:
    from pandas import DataFrame

_ORDER: dict[Table, str] = {
    "rounds": "round",
    "trajectories": "trajectory_id",
    "verdicts": "trajectory_id",
    "scores": "round, trajectory_id, reference",
    "draws": 'round, "update", position',
    "evaluations": "round, policy, problem_set, prompt_id, sample",
}


def open(path: str | PathLike[str]) -> Run:
    """Open a run, an evaluation or an import for reading.

    Args:
        path: The run directory.

    Raises:
        reval_core.errors.InputError: The directory holds no run.
    """
    run = Run(Path(path))
    published_tables(run.path)  # raises if there is no run
    return run


class Run:
    """The tables of a run directory, read-only.

    Every call reads what the run has published by then, without the lock of the run: a run can be read while it
    trains, and later calls see more rounds. docs/schema.md describes the columns of each table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        """The run directory."""

    def __repr__(self) -> str:
        return f"reval.open({str(self.path)!r})"

    def rounds(self, columns: Sequence[str] | None = None) -> DataFrame:
        """One row per round: accuracy, rewards, KL divergence and other means over the round.

        Args:
            columns: The columns to read, in this order; all by default.
        """
        return self._table("rounds", columns)

    def trajectories(self, columns: Sequence[str] | None = None, round: int | None = None) -> DataFrame:
        """One row per generated response: prompt, text, tokens and the engine's log-probs.

        The columns of tokens and log-probs take most of the memory; select `columns` if a run is large.

        Args:
            columns: The columns to read, in this order; all by default.
            round: Only the rows of this round.
        """
        return self._table("trajectories", columns, round)

    def verdicts(self, columns: Sequence[str] | None = None, round: int | None = None) -> DataFrame:
        """One row per trajectory: the verdict, the extracted answer, the reward and the advantage.

        Args:
            columns: The columns to read, in this order; all by default.
            round: Only the rows of this round.
        """
        return self._table("verdicts", columns, round)

    def scores(self, columns: Sequence[str] | None = None, round: int | None = None) -> DataFrame:
        """One row per trajectory and reference: log-probs and values under both policies, and the residual Δ(τ).

        Args:
            columns: The columns to read, in this order; all by default.
            round: Only the rows of this round.
        """
        return self._table("scores", columns, round)

    def draws(self, columns: Sequence[str] | None = None, round: int | None = None) -> DataFrame:
        """One row per trajectory drawn from the replay buffer for an update, with its probability and its weight.

        Args:
            columns: The columns to read, in this order; all by default.
            round: Only the rows of this round.
        """
        return self._table("draws", columns, round)

    def evaluations(self, columns: Sequence[str] | None = None, round: int | None = None) -> DataFrame:
        """One row per response to a held-out problem, with its verdict.

        Args:
            columns: The columns to read, in this order; all by default.
            round: Only the rows of this round. In an evaluation directory: of this benchmark run.
        """
        return self._table("evaluations", columns, round)

    def sql(self, query: str) -> DataFrame:
        """The rows of one SELECT over the tables, in DuckDB's dialect.

        The query can read the tables of this run and nothing else, and can change nothing.

        Raises:
            reval.flows.querying.QueryError: DuckDB rejects the query, or it is not one SELECT.
        """
        return query_frame(self.path, query)

    def _table(self, table: Table, columns: Sequence[str] | None, round: int | None = None) -> DataFrame:
        known = SCHEMAS[table].names
        unknown = [name for name in columns or () if name not in known]
        if unknown:
            raise InputError(f"{table}: has no column {unknown[0]!r}; its columns are {', '.join(known)}")
        names = "*" if columns is None else ", ".join(f'"{name}"' for name in columns)
        where = "" if round is None else f"WHERE round = {int(round)}"
        return self.sql(f'SELECT {names} FROM "{table}" {where} ORDER BY {_ORDER[table]}')
