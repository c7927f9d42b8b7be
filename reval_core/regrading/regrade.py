"""Regrades the stored responses of a run or an evaluation without changing or locking it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from reval_core.answers.extraction import Method
from reval_core.atomic_files import publish_file
from reval_core.config import DynamicSampling, Reward, Verification
from reval_core.config.loader import load_settings
from reval_core.errors import CorruptData, InputError
from reval_core.evaluation.directory import EvaluationDirectory, published_tables
from reval_core.replay_buffer.index import sql_views
from reval_core.stages.verification import claims_of, verdict_table, with_given
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS
from reval_core.user_code import check_call
from reval_core.verification import VERIFIER_VERSION, Claim, Judgement, Verifier

_COLUMNS = """
    t.trajectory_id, t.round, t.problem_set, t.prompt_id, t.problem, t.gold, t.gold_mode, t.given_reward,
    t.response, t.response_length, t.finish_reason
"""
_OF_A_RUN = f"""
    SELECT {_COLUMNS}, v.verdict AS verdict_before, v.extracted AS extracted_before, v.reward AS reward_before
    FROM trajectories t JOIN verdicts v USING (trajectory_id)
"""
_OF_AN_EVALUATION = f"""
    SELECT {_COLUMNS}, e.verdict AS verdict_before, e.extracted AS extracted_before, NULL::REAL AS reward_before
    FROM trajectories t JOIN evaluations e USING (policy, problem_set, prompt_id, sample)
"""
_KEPT = ("problem_set", "prompt_id", "gold", "verdict_before", "extracted_before", "reward_before")


class Generation(BaseModel, extra="ignore"):
    """The settings in a run's section `rollouts` that verdicts depend on."""

    max_tokens: int | None = None
    dynamic_sampling: DynamicSampling | None = None


class Rules(BaseModel, extra="ignore"):
    """The sections of a run's config, or of an evaluation's, that decide verdicts and rewards."""

    verification: Verification = Verification()
    reward: Reward = Reward()
    rollouts: Generation = Generation()


@dataclass(frozen=True)
class Stored:
    """A run or an evaluation to regrade."""

    directory: RunDirectory
    is_run: bool
    rounds: tuple[int, ...]
    """The judged rounds; for an evaluation the rounds of its policies."""


def stored_responses(path: Path, rounds: Sequence[int]) -> Stored:
    """Open the run or the evaluation in a directory for regrading.

    Args:
        path: The directory.
        rounds: The rounds to regrade; all judged rounds if empty.

    Raises:
        InputError: There is no run or evaluation, or a round has not been judged yet.
    """
    evaluation = EvaluationDirectory(path)
    is_run = not evaluation.protocol.exists()
    directory = RunDirectory(path) if is_run else evaluation
    judged = _judged_rounds(path, is_run)
    missing = [round for round in rounds if round not in judged]
    if missing:
        known = f"rounds {judged[0]} to {judged[-1]}" if judged else "no rounds yet"
        raise InputError(f"{path}: round {missing[0]} has no verdicts; judged: {known}; choose --round from these")
    if not judged:
        raise InputError(f"{path}: no response has been judged yet; wait for the first round")
    return Stored(directory, is_run, tuple(sorted(set(rounds))) or tuple(judged))


def other_rules(stored: Stored, mode: str | None, methods: str | None, function: str | None) -> Rules:
    """Return the rules of a run or an evaluation with the given ones replaced.

    Args:
        stored: The run or evaluation.
        mode: Verification mode, or None to keep it. Replaces a reward function.
        methods: Comma-separated extraction methods, or None to keep them. Replaces a reward function.
        function: Reward function `package.module:function`, or None to keep it.

    Raises:
        InputError: A value cannot be used.
    """
    unknown = [one for one in (methods.split(",") if methods else ()) if one not in get_args(Method)]
    if unknown:
        raise InputError(
            f"--methods {methods}: {unknown[0]!r} is not a method; choose from {', '.join(get_args(Method))}"
        )
    try:
        if function:
            check_call(function, 3, {})
    except ValueError as error:
        raise InputError(f"--function {error}; give package.module:function") from error
    overrides = [f"verification.mode={mode}"] if mode else []
    overrides += [f"verification.methods=[{methods}]"] if methods else []
    if overrides or function:
        overrides += [f"reward.function={function or 'null'}", "reward.settings={}"]
    path = stored.directory.config if stored.is_run else stored.directory.protocol
    return load_settings(path, Rules, overrides)


def check_out(stored: Stored, out: Path) -> None:
    """Check that a new file can be written at `out`, outside the run.

    Raises:
        InputError: It cannot.
    """
    if out.exists():
        raise InputError(f"{out}: already exists; give --out a new file")
    if out.absolute().is_relative_to(stored.directory.path):
        raise InputError(
            f"{out}: is inside {stored.directory.path}, which is never changed; give --out a file outside it"
        )
    try:
        publish_file(out, lambda partial: partial.touch())
        out.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from error


def regrade(
    stored: Stored, rules: Rules, verifier: Verifier, tick: Callable[[int, int], None] = lambda done, total: None
) -> pa.Table:
    """Judge every stored response under other rules.

    A reward that was imported with a response is kept.

    Args:
        stored: The run or evaluation, with its rounds.
        rules: The rules to apply.
        verifier: Judges the responses.
        tick: Called with the number of responses done in a round, and their total.

    Returns:
        The columns of `verdicts`, then `problem_set`, `prompt_id`, `gold`, `verdict_before`, `extracted_before`
        and `reward_before`.

    Raises:
        CorruptData: A file of the run cannot be read.
        VerifierUnavailable: The verifier cannot judge.
    """
    tables = []
    for round in stored.rounds:
        rows = _rows(stored, round)
        columns = rows.to_pydict()
        judgements = with_given(columns, _ticked(verifier, claims_of(columns), tick))
        judged = verdict_table(
            columns,
            judgements,
            rules.reward,
            max_tokens=rules.rollouts.max_tokens,
            dynamic=rules.rollouts.dynamic_sampling is not None,
        ).cast(SCHEMAS["verdicts"])
        for name in _KEPT:
            judged = judged.append_column(name, rows.column(name))
        tables.append(judged)
    return pa.concat_tables(tables)


def _ticked(verifier: Verifier, claims: Sequence[Claim], tick: Callable[[int, int], None]) -> Iterator[Judgement]:
    for done, judgement in enumerate(verifier.judge_each(claims), start=1):
        tick(done, len(claims))
        yield judgement


def write_regraded(out: Path, table: pa.Table, stored: Stored, rules: Rules) -> None:
    """Write the table as Parquet, with its provenance under the metadata key `reval.regraded`."""
    made = {
        "run": stored.directory.name,
        "rules": rules.model_dump(mode="json"),
        "verifier": VERIFIER_VERSION,
        "rounds": stored.rounds,
    }
    described = table.replace_schema_metadata({"reval.regraded": json.dumps(made)})
    publish_file(out, lambda partial: pq.write_table(described, partial, compression="zstd"))


def _judged_rounds(path: Path, is_run: bool) -> list[int]:
    if is_run:
        return sorted({one.round for one in published_tables(path) if one.stage == "verification"})
    with sql_views(path, published_tables(path)) as connection:
        return [
            round for (round,) in connection.execute("SELECT DISTINCT round FROM evaluations ORDER BY 1").fetchall()
        ]


def _rows(stored: Stored, round: int) -> pa.Table:
    query = _OF_A_RUN if stored.is_run else _OF_AN_EVALUATION
    path = stored.directory.path
    with sql_views(path, published_tables(path)) as connection:
        try:
            found = connection.sql(
                f"{query} WHERE t.round = $round ORDER BY t.trajectory_id", params={"round": round}
            )
            return found.to_arrow_table()
        except duckdb.Error as error:
            raise CorruptData(f"{path}: round {round} cannot be read ({str(error).splitlines()[0]})") from error
