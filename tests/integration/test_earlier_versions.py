"""Runs of an earlier version: what needs the same learner is refused with its name, everything else works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from reval.flows.preparation import prepare
from reval_core.atomic_files import publish_sealed, read_sealed
from reval_core.errors import InputError
from reval_core.learning.learner import LEARNER_VERSION
from reval_core.maintenance.check import check_run
from reval_core.model.loading import load_model, policy_digest
from reval_core.pipeline.run_context import open_run_context
from reval_core.storage.run_directory import RunDirectory
from tests.commands import command
from tests.runs import run, small_config

CONFIG = small_config(rounds=3, checkpoints={"every": 1, "keep": 2})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of a run of four, as learner 3 records them."""
    path = tmp_path_factory.mktemp("earlier") / "run"
    run(path, CONFIG)
    machine = RunDirectory(path).machine
    publish_sealed(machine, {**read_sealed(machine), "learner": "3"})
    return path


@pytest.fixture
def earlier(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def reval(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """The command: its exit status, and the text of each stream."""

    return command(capfd, monkeypatch)


def state(path: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def refusal() -> str:
    return rf"run: was made with learner 3, now {LEARNER_VERSION}; resume with the same versions"


def test_resuming_it_is_refused_before_any_work(earlier, reval):
    before = state(earlier)
    with pytest.raises(InputError, match=refusal()):
        prepare(earlier / "config.yaml", ["rounds=4"], earlier)
    for words in (("resume",), ("train", "--dry-run", "config.yaml", "--run-dir")):
        given = [str(earlier / "config.yaml") if one == "config.yaml" else one for one in words]
        code, _, said = reval(*given, str(earlier))
        assert (code, said.count("\n")) == (2, 1), said
        assert f"was made with learner 3, now {LEARNER_VERSION}" in said
    assert state(earlier) == before
    with pytest.raises(InputError, match=refusal()), open_run_context(RunDirectory(earlier), CONFIG):
        pass


def test_without_its_machine_file_its_warm_start_decides(earlier):
    directory = RunDirectory(earlier)
    directory.machine.unlink()
    before = state(earlier)
    prepare(directory.config, ["rounds=4"], earlier)  # the manifest has the current learner version
    assert state(earlier) == before, "preparing changes nothing"
    manifest = directory.manifest_path("warm_start", 0)
    content = read_sealed(manifest)
    content["info"]["machine"]["learner"] = "3"
    publish_sealed(manifest, content)
    with pytest.raises(InputError, match=refusal()):
        prepare(directory.config, ["rounds=4"], earlier)


def test_reading_checking_and_its_saved_policies_need_no_learner(earlier, reval, tmp_path):
    results = {one.part: one for one in check_run(RunDirectory(earlier), CONFIG)}
    assert not [problem for one in results.values() for problem in one.problems]
    assert f"skipped: {earlier}: was made with learner 3" in results["replay"].seen
    code, found, _ = reval("sql", str(earlier), "SELECT max(round) AS last FROM updates", "--json")
    assert (code, json.loads(found)) == (0, [{"last": 3}])
    assert reval("report", str(earlier))[0] == 0
    out = tmp_path / "policy"
    assert reval("export-model", str(earlier), "--round", "3", "--out", str(out))[0] == 0
    assert policy_digest(load_model(out)) == policy_digest(load_model(RunDirectory(earlier).checkpoint(3)))


def test_a_policy_that_would_need_reconstruction_is_refused(earlier, reval, tmp_path):
    assert not RunDirectory(earlier).checkpoint(1).exists()
    code, _, said = reval("export-model", str(earlier), "--round", "1", "--out", str(tmp_path / "policy"))
    assert (code, f"was made with learner 3, now {LEARNER_VERSION}" in said) == (2, True)
    assert not (tmp_path / "policy").exists()


def test_settings_added_since_do_not_make_it_another_config(made, tmp_path):
    path = Path(shutil.copytree(made, tmp_path / "run"))
    directory = RunDirectory(path)
    recorded = yaml.safe_load(directory.config.read_text())
    del recorded["learner"]["spike_limit"], recorded["engine"], recorded["replay"]["sampling"]
    directory.config.write_text(yaml.safe_dump(recorded))
    directory.check(CONFIG)
    with pytest.raises(InputError, match=r"made with another config \(replay\.sampling, learner\.lr differ\)"):
        directory.check(
            small_config(rounds=3, checkpoints=CONFIG.checkpoints, learner__lr=1.0, replay__sampling="prioritised")
        )
