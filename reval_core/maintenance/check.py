"""Checking a run: its files, its rows, its database, and that its weights follow from its draws."""

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

# Each gives one row for each thing that is wrong, with what to call it first.
_ROWS = {
    "a trajectory stands twice": """
        SELECT trajectory_id FROM trajectories GROUP BY ALL HAVING count(*) > 1""",
    "a round has more or fewer trajectories than were asked for": """
        SELECT round FROM trajectories WHERE round > 0 GROUP BY round
        HAVING count(*) > $most OR (count(*) < $trajectories AND NOT $fewer)""",
    "a trajectory has not one verdict": """
        SELECT t.trajectory_id FROM trajectories t LEFT JOIN verdicts v USING (trajectory_id)
        WHERE t.round <= $judged GROUP BY ALL HAVING count(v.verdict) <> 1""",
    "a trajectory has not one score by the policy that wrote it": """
        SELECT t.trajectory_id FROM trajectories t
        LEFT JOIN scores s ON s.trajectory_id = t.trajectory_id AND s.round = t.round
        AND (s.policy = t.policy OR t.round = 0)  -- of stored trajectories the writer is not known
        WHERE t.round <= $scored GROUP BY ALL HAVING count(s.policy) <> 1""",
    "a verdict or score belongs to no trajectory": """
        SELECT trajectory_id FROM (SELECT trajectory_id FROM verdicts UNION ALL SELECT trajectory_id FROM scores)
        ANTI JOIN trajectories USING (trajectory_id)""",
    "a draw is not of a judged trajectory in its place": """
        SELECT d.trajectory_id FROM draws d
        ANTI JOIN (SELECT * FROM trajectories JOIN verdicts USING (trajectory_id)) t
        ON t.trajectory_id = d.trajectory_id AND t.shard = d.shard AND t."row" = d."row" AND t.reward = d.reward""",
    "a draw is of a group that was replaced": """
        SELECT d.trajectory_id FROM draws d JOIN verdicts v USING (trajectory_id) WHERE v.replaced""",
    "a draw's reference scores are not on record": """
        SELECT d.trajectory_id FROM draws d
        ANTI JOIN scores s ON s.trajectory_id = d.trajectory_id AND s.reference = d.reference
        AND s.log_ref = d.log_ref AND s.value_ref = d.value_ref""",
    "a draw has not one residual": """
        SELECT d.round, d."update", d.trajectory_id FROM draws d
        LEFT JOIN residuals r USING (round, "update", trajectory_id)
        WHERE d.round <= $learned GROUP BY ALL HAVING count(r.trajectory_id) <> 1""",
    "a round has more or fewer updates than were asked for": """
        SELECT round FROM updates GROUP BY round HAVING count(*) NOT BETWEEN $least_updates AND $updates""",
    "an evaluation is not of every problem and sample": """
        SELECT round FROM evaluations GROUP BY round
        HAVING count(*) <> (SELECT max(n) FROM (SELECT count(*) AS n FROM evaluations GROUP BY round))""",
}


@dataclass(frozen=True)
class Result:
    """What one part of a check found. `problems` is empty where all is well."""

    part: str
    seen: str
    problems: Sequence[str] = ()


def check_run(
    directory: RunDirectory, config: Config, tick: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Result]:
    """Check a run part by part. The caller holds the folder's lock. Only the note in `check.json` is written.

    After the first part that finds a problem the rest is left out: it could only find the same again.
    """
    for part in (_files, _rows, _database, partial(_replay, tick=tick)):
        result = part(directory, config)
        yield result
        if result.problems:
            return


def _files(directory: RunDirectory, config: Config) -> Result:
    damages = inspect(directory, config)
    note_checkpoints(directory, corrupt_checkpoints(damages))
    if damages:
        return Result("files", "checksums of all files", [str(damage) for damage in damages])
    files = {file.path for manifest in directory.manifests() for file in manifest.files}
    size = sum((directory.path / path).stat().st_size for path in files)
    checkpoints = len(checkpoint_rounds(directory.checkpoints))
    return Result("files", f"{len(files):,} files of facts, {size / 1e6:,.1f} MB, and {checkpoints} checkpoints")


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
        return Result("database", "not there; the next start makes it")
    manifests = directory.manifests()
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary) / "fresh.duckdb"
        store = Store(directory.path, fresh, config.replay.capacity, config.replay.max_age)
        try:
            held = stages_held(directory.database)
            # A run that was killed may not have taken in the last of what it published.
            taken_in = list(takewhile(lambda one: not one.files or (one.stage, one.round) in held, manifests))
            store.build(taken_in)
            store.close()
            tables = tables_differing(directory.database, fresh)
            differing = [f"table {table} is not what the facts give" for table in tables]
        except duckdb.Error as error:
            differing, taken_in = [str(error).splitlines()[0]], manifests
    problems = [f"{directory.database.name}: {one}; reval rebuild mends it" for one in differing]
    behind = len(manifests) - len(taken_in)
    seen = (
        f"as the facts give it, but for {behind} stages that the next start takes in"
        if behind
        else "as the facts give it"
    )
    return Result("database", f"every table {seen}", problems)


def _replay(directory: RunDirectory, config: Config, tick: Callable[[int, int], None]) -> Result:
    """From the last checkpoint but one: the last one's weights must come out, and then the newest policy's name."""
    saved = sorted(checkpoint_rounds(directory.checkpoints))
    if len(saved) < 2:
        return Result("replay", "fewer than two checkpoints: nothing to compare yet")
    try:
        fix_machine(directory, config)
    except InputError as error:
        return Result("replay", f"left out: {error}")
    if saved[-2] < directory.pruned_at():
        return Result("replay", "left out: the run was pruned, and the tokens that were drawn are gone")
    try:
        newest, exact = _replayed(directory, config, saved[-1], tick)
    except CorruptData as error:
        return Result("replay", f"from round {saved[-2]} on", [str(error)])
    found = "to the bit" if exact else "were not repeated to the bit, as kernels of a GPU may"
    return Result("replay", f"rounds {saved[-2]} to {newest}: the weights of checkpoint {saved[-1]} {found}")


def _replayed(
    directory: RunDirectory, config: Config, round: int, tick: Callable[[int, int], None]
) -> tuple[int, bool]:
    """The last round that could be replayed, and whether all weights came out to the bit.

    `round` is the newest checkpoint's. Raises Damaged, naming it, at the first round that comes out different; on a
    GPU only the names of policies have to be the same.
    """
    policy = recorded_policy(directory, round)
    if policy is None:
        raise CorruptData(f"{directory.checkpoint(round)}: no round of this run made it")
    draws = DrawReader(directory)
    learner = reconstruct(directory, config, draws, policy, before=round - 1, tick=tick)
    exact = learner.content() == checkpoint_state(directory.checkpoint(round))["content"]
    if not exact and repeats_bits():
        raise CorruptData(f"{directory.checkpoint(round)}: replaying the draws gives other weights")
    while (following := recorded_policy(directory, round + 1)) is not None:
        learn(learner, draws.read(following.round))
        if learner.policy != following.identity:
            raise CorruptData(
                f"{directory.path}: replaying the draws of round {following.round} gives another policy"
            )
        round = following.round
        exact = has_recorded_weights(directory, learner, round) and exact
    return round, exact


def _last_round(manifests: Sequence[Manifest], stage: str) -> int:
    return max((manifest.round for manifest in manifests if manifest.stage == stage), default=0)
