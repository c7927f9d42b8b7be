"""Hostile run directories, configs, problem files and responses: refused in one line, or used correctly."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reval.flows import foreground
from reval_core.atomic_files import publish_json, read_json
from reval_core.config.loader import load_config
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory
from tests.commands import Answer, command
from tests.conftest import SMALL
from tests.integration.hostile import CONFIGS, PROBLEM_FILES, RESPONSE_FILES, RUN_DIRECTORIES, Hostile
from tests.models import save_byte_level_model
from tests.runs import run, small_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def reval(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, with its flow executed without Prefect."""
    monkeypatch.chdir(tmp_path)

    execute = command(capfd, monkeypatch)

    def without_prefect(*arguments: str) -> Answer:
        monkeypatch.setattr(foreground, "run_flow", lambda flow: _trained(RunDirectory(_directory(arguments))))
        return execute(*arguments)

    return without_prefect


def _directory(arguments: tuple[str, ...]) -> Path:
    return Path(arguments[arguments.index("--run-dir") + 1] if "--run-dir" in arguments else arguments[1])


def _trained(directory: RunDirectory) -> bool:
    config = directory.config if directory.config.exists() else Path("config.yaml")
    publish_json(directory.summary, run(directory.path, load_config(config)) or {})
    return True


def _refused(answer: Answer, said: str) -> None:
    assert answer.code in (1, 2), answer
    assert answer.err.startswith("reval: "), answer.err
    assert answer.err.count("\n") == 1, answer.err
    assert re.search(said, answer.err), answer.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", answer.err)


def _cases(group: list[Hostile]) -> Any:
    return pytest.mark.parametrize("case", group, ids=[case.what for case in group])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An unfinished run with one round left, and its final policy."""
    config = small_config(rounds=2)
    whole, part = (tmp_path_factory.mktemp(name) / "run" for name in ("whole", "part"))
    run(whole, config)
    run(part, config, until=1)
    return part, summarise(RunDirectory(whole))["policy_digest"]


@_cases(RUN_DIRECTORIES)
def test_a_hostile_run_directory_does_no_harm(case: Hostile, interrupted: Any, reval: Any, tmp_path: Path) -> None:
    path, digest = interrupted
    shutil.copytree(path, tmp_path / "run")
    (tmp_path / "precious").write_text("the owner's")
    (tmp_path / "elsewhere").mkdir()
    case.make(tmp_path / "run")
    answer = reval("resume", "run")
    if case.said is not None:
        _refused(answer, case.said)
    else:
        assert answer.code == 0, answer.err
        assert "Traceback" not in answer.err
        assert read_json(tmp_path / "run/summary.json")["policy_digest"] == digest
    assert (tmp_path / "precious").read_text() == "the owner's"
    assert sorted(one.name for one in tmp_path.iterdir() if one.name not in ("was there", "cache")) == [
        "elsewhere",
        "precious",
        "run",
    ]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@_cases([case for case in RUN_DIRECTORIES if case.what.startswith("a checkpoint whose")])
def test_a_checkpoint_that_cannot_be_loaded_is_reconstructed_as_the_error_suggests(
    case: Hostile, interrupted: Any, reval: Any, tmp_path: Path
) -> None:
    path, digest = interrupted
    shutil.copytree(path, tmp_path / "run")
    case.make(tmp_path / "run")
    _refused(reval("resume", "run"), r"reval resume regenerates it")
    again = reval("resume", "run")
    assert again.code == 0, again.err
    assert read_json(tmp_path / "run/summary.json")["policy_digest"] == digest
    assert list(tmp_path.glob("run/checkpoints/*.damaged"))


@_cases(CONFIGS)
def test_a_hostile_config_is_one_line(case: Hostile, reval: Any, tmp_path: Path) -> None:
    case.make(tmp_path)
    more = tmp_path / "more"
    if more.exists():
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(SMALL))
        more.rename(tmp_path / "hostile.yaml")
        with (tmp_path / "hostile.yaml").open("a") as file:
            file.write("extends: config.yaml\n")
    config = "hostile.yaml" if (tmp_path / "hostile.yaml").exists() else "config.yaml"
    _refused(reval("train", config, "--run-dir", "run"), case.said or "")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    save_byte_level_model(path)
    return path


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Settings of one round on the problems of the case, for a model that reads any text."""
    values = json.loads(json.dumps(SMALL))
    values |= {"rounds": 1, "model": {"path": str(model)}, "evaluation": {"every": 1, "samples": 1}}
    values["problems"] = {"held_out": {"arithmetic": {"digits": 1, "split": "held_out"}, "limit": 2}}
    values["rollouts"] = {"prompts": 1, "samples": 2, "max_tokens": 4}
    return values


@_cases(PROBLEM_FILES)
def test_a_hostile_problem_file_is_one_line_or_a_correct_round(
    case: Hostile, config: dict[str, Any], reval: Any, tmp_path: Path
) -> None:
    case.make(tmp_path)
    (file,) = tmp_path.glob("p.*")
    config["problems"]["train"] = {"path": file.name}
    if case.said is None:
        config["rollouts"]["prompts"] = len(file.read_text().split("\n")) - 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    answer = reval("train", "config.yaml", "--run-dir", "run")
    if case.said is not None:
        _refused(answer, case.said)
        assert not (tmp_path / "run").exists()
    else:
        assert answer.code == 0, answer.err
        texts = {json.loads(line)["problem"].strip() for line in file.read_text().split("\n") if line}
        asked = reval("sql", "run", "SELECT DISTINCT problem, prompt_tokens FROM trajectories", "--json")
        rows = json.loads(asked.out)
        assert {row["problem"] for row in rows} == texts
        assert not any({0, 1} & set(row["prompt_tokens"]) for row in rows), "a text became a control token"


@_cases(RESPONSE_FILES)
def test_a_hostile_response_file_is_one_line_or_imported(
    case: Hostile, config: dict[str, Any], reval: Any, tmp_path: Path
) -> None:
    case.make(tmp_path)
    (file,) = tmp_path.glob("r.*")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "problems": {}}))
    stored = "rollouts={source: stored, run: run, batch: 1}"
    replay = "replay={capacity: 64, first: buffer}"
    arguments = ["--config", "config.yaml", "--set", stored, "--set", replay, "--run-dir", "run"]
    answer = reval("import", file.name, *arguments)
    if case.said is not None:
        _refused(answer, case.said)
        assert not (tmp_path / "run").exists()
    else:
        assert answer.code == 0, answer.err
        rows = json.loads(reval("sql", "run", "SELECT response_tokens AS t FROM trajectories", "--json").out)
        assert all(row["t"][-1] == 1 and 1 not in row["t"][:-1] for row in rows), "an end of text in the middle"


def test_forty_inputs_and_more_were_tried_and_the_page_lists_them() -> None:
    assert len([*RUN_DIRECTORIES, *CONFIGS, *PROBLEM_FILES, *RESPONSE_FILES]) >= 40
    made = runpy.run_path(str(ROOT / "docs/make_hostile_inputs.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run docs/make_hostile_inputs.py"
