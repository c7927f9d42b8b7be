"""`reval init`: the directory that it writes can be trained from as it is."""

import json

import pytest
import yaml
from click.testing import CliRunner

from reval.flows.cli.init import LINES, init, sample_problems
from reval.flows.preparation import prepare
from reval_core.config.loader import load_config
from reval_core.errors import InputError


def test_the_config_passes_every_check_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(init, ["mine"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "reval train mine/config.yaml --dry-run" in done.output
    settings = prepare(tmp_path / "mine/config.yaml", [], None).config
    assert settings.rounds == 10
    assert not (tmp_path / "runs").exists()


def test_the_sample_is_of_forty_different_problems_with_right_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(init, ["mine"], catch_exceptions=False)
    lines = [line for name in ("train", "held_out") for line in (tmp_path / f"mine/{name}.jsonl").open()]
    rows = [json.loads(line) for line in lines]
    assert len({row["problem"] for row in rows}) == len(rows) == LINES == 40
    assert rows == sample_problems()
    for row in rows:
        words = row["problem"].replace(".", " ").split()
        a, b = (int(word) for word in words if word.isdigit())
        answers = {"more": a + b, "away": a - b, "boxes": a * b, "shares": a // b}
        (answer,) = (value for word, value in answers.items() if word in words)
        assert row["answer"] == str(answer), row
    assert "Origin" in (tmp_path / "mine/README.md").read_text()


def test_the_model_is_written_into_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(init, ["with a 'quote'", "--model", 'models/"mine": 1'], catch_exceptions=False)
    settings = load_config(tmp_path / "with a 'quote'/config.yaml", [])
    assert settings.model.path == 'models/"mine": 1'
    assert settings.problems.train.path == str(tmp_path / "with a 'quote'/train.jsonl")


def test_a_directory_with_files_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="mine: is not empty"):
        CliRunner().invoke(init, ["mine"], catch_exceptions=False)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_comments_survive_as_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(init, ["mine"], catch_exceptions=False)
    text = (tmp_path / "mine/config.yaml").read_text(encoding="utf-8")
    assert "{{" not in text
    assert yaml.safe_load(text)["problems"]["prompt"] == {"user": "{problem}", "chat": False}
