"""Bytes flipped, cut off or gone, in every kind of file: made again where that can be done, else refused."""

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
"""One or two of every kind of file that a run goes on from."""

NOT_MISSED = [
    "rollouts/round=00002/shard-001.json",
    "facts/round=00003/recording.json",
    "facts/round=00003/checkpoint.json",
    "attempts/0001.json",
]
"""What an attempt that was killed may not have written: made again without a word."""

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
def test_what_is_damaged_is_made_again_and_nothing_else_changes(undisturbed, tmp_path, how, name, caplog):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    damage(path / name, how)
    if name == "checkpoints/round=00000/model.safetensors":  # nothing reads it at a start unless a check found it
        list(check_run(RunDirectory(path), CONFIG))
    run(path, CONFIG)
    if name != "replay.duckdb" and not (how == "delete" and name in NOT_MISSED):
        assert str(Path(name).parent if "checkpoints" in name else name) in caplog.text, "nothing was said of it"
    hurt = RunDirectory(path)
    assert summarise(hurt)["policy_digest"] == summarise(RunDirectory(undisturbed))["policy_digest"]
    assert tables(hurt) == tables(RunDirectory(undisturbed))
    results = list(check_run(hurt, CONFIG))
    assert [problem for result in results for problem in result.problems] == []
    assert len(results) == 4


def test_check_names_what_is_damaged_and_changes_nothing(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    damage(path / "rollouts/round=00002/shard-000.parquet", "flip")
    damage(path / "facts/round=00001/learning.json", "delete")
    damage(path / "checkpoints/round=00003/optimizer.safetensors", "cut")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file != path}
    (result,) = check_run(RunDirectory(path), CONFIG)
    assert result.problems == [
        "checkpoints/round=00003: optimizer.safetensors: is not what was written",
        "facts/round=00001/learning.json: is gone",
        "rollouts/round=00002/shard-000.parquet: is not what was written (its checksum differs)",
    ]
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_shard_that_comes_out_different_is_refused(undisturbed, tmp_path, monkeypatch):
    """As with an engine that does not repeat itself: the rest of the run was learned from what is lost."""
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    damage(path / "rollouts/round=00002/shard-000.parquet", "delete")
    generate = TransformersEngine.generate

    def otherwise(self, requests, sampling, enough):
        return generate(self, [replace(one, seed=one.seed + 1) for one in requests], sampling, enough)

    monkeypatch.setattr(TransformersEngine, "generate", otherwise)
    for _ in range(2):  # it stays refused
        with pytest.raises(RevalError, match=r"round=00002/shard-000\.parquet: was lost, and came out different"):
            run(path, CONFIG)


def test_a_run_without_its_first_policy_is_refused_if_that_cannot_be_made_again(undisturbed, tmp_path):
    """The seed is another now, and so is the warm start: what stands does not follow from it."""
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    damage(path / "config.yaml", "delete")
    with pytest.raises(RevalError, match=r"warm_start\.json: was made from other inputs"):
        run(path, CONFIG.model_copy(update={"seed": 5}))


def test_a_damaged_config_is_refused_naming_it(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    (path / "config.yaml").write_text("seed: [")
    with pytest.raises(RevalError, match=r"config\.yaml.*is corrupt: delete it and give the config"):
        run(path, CONFIG)


def test_scores_against_an_earlier_reference_are_made_again(tmp_path, caplog):
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


def test_making_an_old_checkpoint_again_deletes_no_newer_one(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    standing = sorted(one.name for one in (path / "checkpoints").iterdir())
    damage(path / "facts/round=00002/checkpoint.json", "delete")
    run(path, CONFIG)
    assert sorted(one.name for one in (path / "checkpoints").iterdir()) == standing


def test_a_damaged_buffer_is_noticed_when_the_database_is_opened(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    with duckdb.connect(path / "replay.duckdb") as connection:
        connection.execute("DROP TABLE buffer")
    run(path, CONFIG)
    assert [problem for result in check_run(RunDirectory(path), CONFIG) for problem in result.problems] == []


def test_a_folder_of_another_version_is_refused_and_left_as_it_is(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    for manifest in RunDirectory(path).manifest_paths():
        manifest.write_text(json.dumps({"stage": "other"}))
    before = sorted(path.rglob("*"))
    with pytest.raises(CorruptData, match=r"none of its \d+ manifests can be read"):
        run(path, CONFIG)
    assert sorted(path.rglob("*")) == before


def test_a_database_that_is_behind_is_not_wrong(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    directory = RunDirectory(path)
    store = Store(path, directory.database, CONFIG.replay.capacity)
    store.build(directory.manifests()[:-3])
    store.close()
    assert [problem for result in check_run(directory, CONFIG) for problem in result.problems] == []


def test_a_damaged_note_of_a_check_does_not_stop_a_run(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    (path / "check.json").write_text("{")
    run(path, CONFIG)
