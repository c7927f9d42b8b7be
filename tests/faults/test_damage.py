"""Flipped, truncated and missing bytes in every kind of file: regenerated if possible, else refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from reval_core.engines.transformers import TransformersEngine
from reval_core.errors import CorruptData, RevalError
from reval_core.maintenance.check import check_run
from reval_core.replay_buffer.index import Store
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory
from tests.faults.zygote import CONFIG
from tests.integration.test_training import tables
from tests.runs import run

FIXED = [
    "rollouts/round=00001/shard-000.parquet",
    "rollouts/round=00003/shard-001.parquet",
    "rollouts/round=00002/shard-001.json",
    "rollouts/round=00002/manifest.json",
    "facts/round=00000/warm_start.json",
    "facts/round=00000/evaluations.parquet",
    "facts/round=00001/verdicts.parquet",
    "facts/round=00003/verification.json",
    "facts/round=00002/scores.parquet",
    "facts/round=00002/rescores.parquet",
    "facts/round=00003/consistency.json",
    "facts/round=00002/draws.parquet",
    "facts/round=00002/sampling.json",
    "facts/round=00001/updates.parquet",
    "facts/round=00002/residuals.parquet",
    "facts/round=00002/learning.json",
    "facts/round=00002/evaluation.json",
    "facts/round=00003/rounds.parquet",
    "facts/round=00003/recording.json",
    "facts/round=00002/reference_reset.json",
    "facts/round=00003/checkpoint.json",
    "checkpoints/round=00000/model.safetensors",
    "checkpoints/round=00002/model.safetensors",
    "checkpoints/round=00003/optimizer.safetensors",
    "checkpoints/round=00003/learner.json",
    "checkpoints/round=00003/checksums.json",
    "replay.duckdb",
    "prompts.parquet",
    "prompts.json",
    "machine.json",
    "attempts/0001.json",
]
"""One or two of every kind of file that a run resumes from."""

NOT_MISSED = [
    "rollouts/round=00002/shard-001.json",
    "facts/round=00003/recording.json",
    "facts/round=00003/checkpoint.json",
    "attempts/0001.json",
]
"""Files that a killed attempt may not have written: regenerated without a warning."""

SHORT = {("flip", "rollouts/round=00001/shard-000.parquet"), ("cut", "checkpoints/round=00002/model.safetensors")}
SHORT |= {("delete", "facts/round=00002/sampling.json"), ("flip", "replay.duckdb")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    run(path, CONFIG)
    return path


def damage(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "delete":
        path.unlink()
    elif how == "cut":
        with path.open("r+b") as file:
            file.truncate(size // 2)
    else:
        content = bytearray(path.read_bytes())
        for place in range(size // 2, min(size, size // 2 + 8)):
            content[place] ^= 0x15
        path.write_bytes(content)


def _cases() -> list[object]:
    cases = [(how, name) for name in FIXED for how in ("flip", "cut", "delete")]
    return [pytest.param(*case, marks=[pytest.mark.full] * (case not in SHORT)) for case in cases]


@pytest.mark.parametrize(("how", "name"), _cases())
def test_corrupt_files_are_regenerated_and_nothing_else_changes(undisturbed, tmp_path, how, name, caplog):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    damage(path / name, how)
    if name == "checkpoints/round=00000/model.safetensors":  # a start reads it only if a check found it corrupt
        list(check_run(RunDirectory(path), CONFIG))
    run(path, CONFIG)
    if name != "replay.duckdb" and not (how == "delete" and name in NOT_MISSED):
        assert str(Path(name).parent if "checkpoints" in name else name) in caplog.text, "nothing was said of it"
    resumed = RunDirectory(path)
    assert summarise(resumed)["policy_digest"] == summarise(RunDirectory(undisturbed))["policy_digest"]
    assert tables(resumed) == tables(RunDirectory(undisturbed))
    results = list(check_run(resumed, CONFIG))
    assert [problem for result in results for problem in result.problems] == []
    assert len(results) == 4


def test_check_reports_corrupt_files_and_changes_nothing(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    damage(path / "rollouts/round=00002/shard-000.parquet", "flip")
    damage(path / "facts/round=00001/learning.json", "delete")
    damage(path / "checkpoints/round=00003/optimizer.safetensors", "cut")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file != path}
    (result,) = check_run(RunDirectory(path), CONFIG)
    assert result.problems == [
        "checkpoints/round=00003: optimizer.safetensors: differs from what was written",
        "facts/round=00001/learning.json: is missing",
        "rollouts/round=00002/shard-000.parquet: differs from what was written (its checksum does not match)",
    ]
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_regenerated_shard_that_differs_is_refused(undisturbed, tmp_path, monkeypatch):
    """As with an engine that is not reproducible: the rest of the run was learned from the lost shard."""
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    damage(path / "rollouts/round=00002/shard-000.parquet", "delete")
    generate = TransformersEngine.generate

    def otherwise(self, requests, sampling, enough):
        return generate(self, [replace(one, seed=one.seed + 1) for one in requests], sampling, enough)

    monkeypatch.setattr(TransformersEngine, "generate", otherwise)
    for _ in range(2):  # it is refused every time
        with pytest.raises(
            RevalError, match=r"round=00002/shard-000\.parquet: was lost, and differs from the record"
        ):
            run(path, CONFIG)


def test_a_run_without_its_initial_policy_is_refused_if_that_cannot_be_reconstructed(undisturbed, tmp_path):
    """With another seed the warm start differs, and the existing records do not follow from it."""
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    damage(path / "config.yaml", "delete")
    with pytest.raises(RevalError, match=r"warm_start\.json: was made from other inputs"):
        run(path, CONFIG.model_copy(update={"seed": 5}))


def test_a_corrupt_config_is_refused_by_name(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    (path / "config.yaml").write_text("seed: [")
    with pytest.raises(RevalError, match=r"config\.yaml.*is corrupt: delete it and pass the config"):
        run(path, CONFIG)


def test_scores_under_an_earlier_reference_are_recomputed(tmp_path, caplog):
    """The reference of round 4 is the policy of round 2, whose checkpoint was deleted at the reset of round 4."""
    path, longer = tmp_path / "run", CONFIG.model_copy(update={"rounds": 5})
    run(path, longer)
    directory = RunDirectory(path)
    assert not directory.checkpoint(2).exists()
    whole, digest = tables(directory), summarise(directory)["policy_digest"]
    damage(path / "facts/round=00004/scores.parquet", "flip")
    run(path, longer)
    assert "facts/round=00004/scores.parquet" in caplog.text
    assert (tables(directory), summarise(directory)["policy_digest"]) == (whole, digest)


def test_reconstructing_an_old_checkpoint_deletes_no_newer_one(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    standing = sorted(one.name for one in (path / "checkpoints").iterdir())
    damage(path / "facts/round=00002/checkpoint.json", "delete")
    run(path, CONFIG)
    assert sorted(one.name for one in (path / "checkpoints").iterdir()) == standing


def test_a_corrupt_buffer_is_detected_when_the_database_is_opened(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    with duckdb.connect(path / "replay.duckdb") as connection:
        connection.execute("DROP TABLE buffer")
    run(path, CONFIG)
    assert [problem for result in check_run(RunDirectory(path), CONFIG) for problem in result.problems] == []


def test_a_directory_of_another_version_is_refused_and_left_unchanged(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    for manifest in RunDirectory(path).manifest_paths():
        manifest.write_text(json.dumps({"stage": "other"}))
    before = sorted(path.rglob("*"))
    with pytest.raises(CorruptData, match=r"none of its \d+ manifests can be read"):
        run(path, CONFIG)
    assert sorted(path.rglob("*")) == before


def test_a_database_that_lags_behind_is_not_an_error(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    directory = RunDirectory(path)
    store = Store(path, directory.database, CONFIG.replay.capacity)
    store.build(directory.manifests()[:-3])
    store.close()
    assert [problem for result in check_run(directory, CONFIG) for problem in result.problems] == []


def test_a_corrupt_record_of_a_check_does_not_stop_a_run(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    (path / "check.json").write_text("{")
    run(path, CONFIG)
