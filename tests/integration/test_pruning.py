"""Pruning a finished run: what is deleted, what stays, and that a kill loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from reval_core.config import Config, StoredRollouts
from reval_core.errors import CorruptData, InputError
from reval_core.learning.draws import DrawReader
from reval_core.maintenance.check import check_run
from reval_core.maintenance.prune import plan, prune
from reval_core.pipeline.reconstruction import reconstruct, recorded_policy
from reval_core.replay_buffer.index import sql_views, tables_differing
from reval_core.replay_buffer.offline import stored_run
from reval_core.report import write_report
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS
from tests.runs import run, small_config

CONFIG = small_config(rounds=6, rollouts__prompts=8, rollouts__prompts_per_shard=2, replay__capacity=64)
"""Six rounds of 32 trajectories, of which the last two are live."""

LISTS = {
    "prompt_tokens",
    "response_tokens",
    "loss_mask",
    "engine_logprobs",
    "policy_rounds",
    "step_deltas",
    "policy_logprobs",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    run(path, CONFIG)
    RunDirectory(path).summary.write_text("{}")
    return path


@pytest.fixture
def directory(finished: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(finished, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def rows(directory: RunDirectory, tokens: bool) -> dict[str, list[tuple]]:
    """Every row of every table, with or without the per-token columns."""
    connection = sql_views(directory.path, directory.manifests())
    found = {}
    for table, schema in SCHEMAS.items():
        columns = ", ".join(f'"{name}"' for name in schema.names if tokens or name not in LISTS)
        found[table] = connection.sql(f'SELECT {columns} FROM "{table}" ORDER BY ALL').fetchall()
    return found


def problems(directory: RunDirectory, config: Config = CONFIG) -> list[str]:
    return [problem for result in check_run(directory, config) for problem in result.problems]


def test_only_tokens_outside_the_buffer_are_deleted(directory):
    before, files = rows(directory, tokens=False), len(list(directory.path.rglob("*.parquet")))
    live = "SELECT * FROM trajectories JOIN scores USING (trajectory_id) WHERE trajectories.round > 4 ORDER BY ALL"
    kept = sql_views(directory.path, directory.manifests()).sql(live).fetchall()
    found = plan(directory, CONFIG)
    assert (found.last_round, len(list(directory.path.rglob("*.parquet")))) == (4, files)
    prune(directory, CONFIG)
    connection = sql_views(directory.path, directory.manifests())
    assert rows(directory, tokens=False) == before
    assert connection.sql(live).fetchall() == kept
    gone = "SELECT count(response_tokens), count(engine_logprobs) FROM trajectories WHERE round <= 4"
    assert connection.sql(gone).fetchall() == [(0, 0)]
    assert not list(directory.path.glob("rollouts/round=0000[1-4]/shard*"))
    assert len(list(directory.path.rglob("*.parquet"))) < files - 4 * 8
    assert plan(directory, CONFIG).size < found.size / 2


def test_a_pruned_run_is_intact_with_the_same_database_report_and_policy(directory, tmp_path):
    digest = summarise(directory)["policy_digest"]
    database = tmp_path / "before.duckdb"
    shutil.copy(directory.database, database)
    prune(directory, CONFIG)
    assert problems(directory) == []
    assert tables_differing(directory.database, database) == ["published"]  # which names the files
    with duckdb.connect(directory.tables, read_only=True) as views:
        assert views.sql("SELECT count(*) FROM trajectories").fetchall() == [(6 * 32,)]
    write_report(directory)
    assert run(directory.path, CONFIG)["policy_digest"] == digest


def test_a_pruned_run_resumes_like_an_unpruned_one(directory, finished, tmp_path):
    longer = CONFIG.model_copy(update={"rounds": 8})
    shutil.copytree(finished, tmp_path / "whole")
    prune(directory, CONFIG)
    assert run(directory.path, longer)["policy_digest"] == run(tmp_path / "whole", longer)["policy_digest"]
    assert problems(directory, longer) == []


def test_policies_between_checkpoints_cannot_be_reconstructed_and_the_error_says_so(directory):
    prune(directory, CONFIG)
    with pytest.raises(CorruptData, match=r"was pruned, .* its checkpoints are available: rounds 0, 2, .*6"):
        reconstruct(directory, CONFIG, DrawReader(directory), recorded_policy(directory, 3))
    assert reconstruct(directory, CONFIG, DrawReader(directory), recorded_policy(directory, 4)).policy


def test_an_unfinished_run_is_not_pruned(directory):
    with pytest.raises(InputError, match="is not finished"):
        plan(directory, CONFIG.model_copy(update={"rounds": 7}))


@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_killed_pruning_is_completed_by_the_next(directory, number):
    program = """if True:
        import os, signal, sys
        from reval_core.maintenance.prune import prune
        from tests.integration.test_pruning import CONFIG, RunDirectory, Path
        left, replace = int(sys.argv[2]), os.replace
        def counted(*paths):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)
        os.replace = counted
        prune(RunDirectory(Path(sys.argv[1])), CONFIG)
    """
    command = [sys.executable, "-c", program, str(directory.path), str(number)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = rows(directory, tokens=False)
    assert problems(directory) == []
    prune(directory, CONFIG)
    assert rows(directory, tokens=False) == before
    assert problems(directory) == []


def test_a_pruned_run_cannot_be_used_for_offline_training(directory):
    prune(directory, CONFIG)
    rollouts = StoredRollouts(source="stored", run=str(directory.path), batch=8)
    with pytest.raises(InputError, match="was pruned, and the tokens of its first 4 rounds are deleted"):
        stored_run(RunDirectory(directory.path.parent / "other"), rollouts)
