"""The integrity check of a run: files, rows, database, and reconstruction of the weights from the draws."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

import duckdb

from reval_core.config import Config, Rollouts
from reval_core.errors import CorruptData, InputError
from reval_core.learning.checkpoints import checkpoint_rounds, checkpoint_state
from reval_core.learning.draws import DrawReader
from reval_core.pipeline.environment import fix_machine
from reval_core.pipeline.integrity import corrupt_checkpoints, inspect, note_checkpoints
from reval_core.pipeline.reconstruction import (
    has_recorded_weights,
    learn,
    reconstruct,
    recorded_policy,
    repeats_bits,
)
from reval_core.replay_buffer.index import Store, sql_views, stages_held, tables_differing
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import Manifest

# The rules by message. Each query returns one row per violation, identified by its first column.
_ROWS = {
    "duplicate trajectory": """
        SELECT trajectory_id FROM trajectories GROUP BY ALL HAVING count(*) > 1""",
    "a round has more or fewer trajectories than configured": """
        SELECT round FROM trajectories WHERE round > 0 GROUP BY round
        HAVING count(*) > $most OR (count(*) < $trajectories AND NOT $fewer)""",
    "a trajectory does not have exactly one verdict": """
        SELECT t.trajectory_id FROM trajectories t LEFT JOIN verdicts v USING (trajectory_id)
        WHERE t.round <= $judged GROUP BY ALL HAVING count(v.verdict) <> 1""",
    "a trajectory does not have exactly one score under its behaviour policy": """
        SELECT t.trajectory_id FROM trajectories t
        LEFT JOIN scores s ON s.trajectory_id = t.trajectory_id AND s.round = t.round
        AND (s.policy = t.policy OR t.round = 0)  -- the behaviour policy of stored trajectories is unknown
        WHERE t.round <= $scored GROUP BY ALL HAVING count(s.policy) <> 1""",
    "a verdict or score without a trajectory": """
        SELECT trajectory_id FROM (SELECT trajectory_id FROM verdicts UNION ALL SELECT trajectory_id FROM scores)
        ANTI JOIN trajectories USING (trajectory_id)""",
    "a draw does not match a judged trajectory": """
        SELECT d.trajectory_id FROM draws d
        ANTI JOIN (SELECT * FROM trajectories JOIN verdicts USING (trajectory_id)) t
        ON t.trajectory_id = d.trajectory_id AND t.shard = d.shard AND t."row" = d."row" AND t.reward = d.reward""",
    "a draw from a replaced group": """
        SELECT d.trajectory_id FROM draws d JOIN verdicts v USING (trajectory_id) WHERE v.replaced""",
    "a draw whose reference scores are not recorded": """
        SELECT d.trajectory_id FROM draws d
        ANTI JOIN scores s ON s.trajectory_id = d.trajectory_id AND s.reference = d.reference
        AND s.log_ref = d.log_ref AND s.value_ref = d.value_ref""",
    "a draw does not have exactly one residual": """
        SELECT d.round, d."update", d.trajectory_id FROM draws d
        LEFT JOIN residuals r USING (round, "update", trajectory_id)
        WHERE d.round <= $learned GROUP BY ALL HAVING count(r.trajectory_id) <> 1""",
    "a round has more or fewer updates than configured": """
        SELECT round FROM updates GROUP BY round HAVING count(*) NOT BETWEEN $least_updates AND $updates""",
    "an evaluation does not cover every problem and sample": """
        SELECT round FROM evaluations GROUP BY round
        HAVING count(*) <> (SELECT max(n) FROM (SELECT count(*) AS n FROM evaluations GROUP BY round))""",
}


@dataclass(frozen=True)
class Result:
    """The result of one part of a check. `problems` is empty if the part passed."""

    part: str
    seen: str
    problems: Sequence[str] = ()


def check_run(
    directory: RunDirectory, config: Config, tick: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Result]:
    """Check a run part by part. The caller holds the lock of the directory. Writes only the note in `check.json`.

    Stops after the first part with problems: the others could only report consequences of the same.

    Args:
        directory: the run.
        config: the settings of the run.
        tick: called with the number of reconstructed and of all updates.
    """
    for part in (_files, _rows, _database, partial(_reconstruction, tick=tick)):
        result = part(directory, config)
        yield result
        if result.problems:
            return


def _files(directory: RunDirectory, config: Config) -> Result:
    corruptions = inspect(directory, config)
    note_checkpoints(directory, corrupt_checkpoints(corruptions))
    if corruptions:
        return Result("files", "checksums of all files", [str(one) for one in corruptions])
    files = {file.path for manifest in directory.manifests() for file in manifest.files}
    size = sum((directory.path / path).stat().st_size for path in files)
    checkpoints = len(checkpoint_rounds(directory.checkpoints))
    return Result("files", f"{len(files):,} table files, {size / 1e6:,.1f} MB, and {checkpoints} checkpoints")


def _rows(directory: RunDirectory, config: Config) -> Result:
    manifests = directory.manifests()
    parameters = {
        "trajectories": config.rollouts.trajectories,
        "most": getattr(config.rollouts, "most_trajectories", config.rollouts.trajectories),
        "fewer": isinstance(config.rollouts, Rollouts) and config.rollouts.cut_off,
        "updates": config.learner.updates,
        "least_updates": config.learner.least_updates or config.learner.updates,
        "judged": _last_round(manifests, "verification"),
        "scored": _last_round(manifests, "consistency"),
        "learned": _last_round(manifests, "learning"),
    }
    problems = []
    with sql_views(directory.path, manifests) as connection:
        for complaint, query in _ROWS.items():
            needed = {name: value for name, value in parameters.items() if f"${name}" in query}
            found = connection.execute(query, needed).fetchall()
            if found:
                problems.append(f"{complaint}: {', '.join(map(str, found[0]))}, and {len(found) - 1} more")
    rows = sum(file.rows for manifest in manifests for file in manifest.files)
    return Result("rows", f"{rows:,} rows, {len(_ROWS)} rules", problems)


def _database(directory: RunDirectory, config: Config) -> Result:
    if not directory.database.exists():
        return Result("database", "does not exist; the next start creates it")
    manifests = directory.manifests()
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary) / "fresh.duckdb"
        store = Store(directory.path, fresh, config.replay.capacity, config.replay.max_age)
        try:
            held = stages_held(directory.database)
            # A killed run may have published stages that it has not indexed yet.
            indexed = list(takewhile(lambda one: not one.files or (one.stage, one.round) in held, manifests))
            store.build(indexed)
            store.close()
            tables = tables_differing(directory.database, fresh)
            differing = [f"table {table} does not match the recorded tables" for table in tables]
        except duckdb.Error as error:
            differing, indexed = [str(error).splitlines()[0]], manifests
    problems = [f"{directory.database.name}: {one}; reval reindex fixes it" for one in differing]
    behind = len(manifests) - len(indexed)
    pending = f", except for {behind} stages that the next start indexes" if behind else ""
    return Result("database", f"every table matches the recorded tables{pending}", problems)


def _reconstruction(directory: RunDirectory, config: Config, tick: Callable[[int, int], None]) -> Result:
    """Reconstruct from the second newest checkpoint the weights of the newest one, and then the newest policy."""
    saved = sorted(checkpoint_rounds(directory.checkpoints))
    if len(saved) < 2:
        return Result("replay", "fewer than two checkpoints: nothing to compare yet")
    try:
        fix_machine(directory, config)
    except InputError as error:
        return Result("replay", f"skipped: {error}")
    if saved[-2] < directory.pruned_at():
        return Result("replay", "skipped: the run was pruned, and the drawn tokens were deleted")
    try:
        newest, exact = _reconstructed(directory, config, saved[-1], tick)
    except CorruptData as error:
        return Result("replay", f"from round {saved[-2]}", [str(error)])
    found = "are bit-identical"
    if not exact:
        found = "are not bit-identical, which GPU kernels and other numbers of processes do not guarantee"
    return Result("replay", f"rounds {saved[-2]} to {newest}: the weights of checkpoint {saved[-1]} {found}")


def _reconstructed(
    directory: RunDirectory, config: Config, round: int, tick: Callable[[int, int], None]
) -> tuple[int, bool]:
    """The last round that could be reconstructed, and whether all weights are bit-identical.

    `round` is that of the newest checkpoint. Raises CorruptData, naming the round, at the first one that differs.
    On a GPU, or with another number of processes, only the identities of policies must match.
    """
    policy = recorded_policy(directory, round)
    if policy is None:
        raise CorruptData(f"{directory.checkpoint(round)}: does not belong to a round of this run")
    draws = DrawReader(directory)
    learner = reconstruct(directory, config, draws, policy, before=round - 1, tick=tick)
    exact = learner.content() == checkpoint_state(directory.checkpoint(round))["content"]
    if not exact and repeats_bits(directory, round):
        raise CorruptData(f"{directory.checkpoint(round)}: reconstruction from the draws gives different weights")
    while (following := recorded_policy(directory, round + 1)) is not None:
        learn(learner, following.round, draws.read(following.round))
        if learner.policy != following.identity:
            raise CorruptData(
                f"{directory.path}: reconstructing round {following.round} from its draws gives a different policy"
            )
        round = following.round
        exact = has_recorded_weights(directory, learner, round) and exact
    return round, exact


def _last_round(manifests: Sequence[Manifest], stage: str) -> int:
    return max((manifest.round for manifest in manifests if manifest.stage == stage), default=0)
