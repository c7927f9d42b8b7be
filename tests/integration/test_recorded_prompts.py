"""Prompts of a chat template that reads the clock: rendered once, whatever is resumed, lost or sampled again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers.utils import chat_template_utils

from reval.flows.benchmarks import run_benchmarks
from reval.flows.importing import import_file
from reval.flows.preparation import prepare, prepare_evaluation
from reval_core import stages
from reval_core.engines.transformers import TransformersEngine
from reval_core.evaluation.context import open_evaluation_context
from reval_core.maintenance.check import check_run
from reval_core.pipeline.integrity import inspect
from reval_core.problems import selection
from reval_core.problems.recorded import read_prompts
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table
from tests.runs import run
from tests.tokenizers_of_kinds import characters, save_noise
from tests.unit.problems.test_prompts import config_for, write_problems

CLOCK = (
    "now {{ strftime_now('%H:%M:%S') }}\n{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}:"
)


class Clock(datetime):
    """A clock that advances a second with each reading."""

    passed = 0

    @classmethod
    def now(cls, *args: Any) -> datetime:
        Clock.passed += 1
        return datetime(2026, 1, 1) + timedelta(seconds=Clock.passed)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = characters()
    tokenizer.chat_template = CLOCK
    return save_noise(tmp_path_factory.mktemp("model") / "dated", tokenizer)


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    write_problems(tmp_path / "train.jsonl", ["1+1=", "html <s>2</s>", "2+2=", "3+3="])
    path = config_for(tmp_path, model)
    values = yaml.safe_load(path.read_text())
    values["problems"]["prompt"] = {"chat": True}
    values["rollouts"] |= {"prompts": 3, "max_tokens": 3}
    path.write_text(yaml.safe_dump(values))
    return path


def attempt(config: Path, path: Path, until: int | None = None) -> None:
    """Continue a run as a new process would."""
    selection._rendered.clear()
    settings, _ = prepare(config, [], path)
    run(path, settings, until)


def prompts_used(path: Path) -> dict[str, set[tuple[str, tuple[int, ...]]]]:
    """The prompts that each problem was sampled with, over all rounds."""
    found: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    for shard in sorted(path.glob("rollouts/*/shard-*.parquet")):
        rows = read_table(shard, ("problem", "prompt", "prompt_tokens")).to_pylist()
        for row in rows:
            found.setdefault(row["problem"], set()).add((row["prompt"], tuple(row["prompt_tokens"])))
    return found


def test_a_runs_prompts_stay_the_same_over_rounds_and_resumes(config, tmp_path):
    path = tmp_path / "run"
    attempt(config, path, until=1)
    record = (path / "prompts.parquet").read_bytes()
    attempt(config, path)
    assert (path / "prompts.parquet").read_bytes() == record
    found, prompts = prompts_used(path), read_prompts(path / "prompts.parquet")
    assert len(found) == 4
    assert len(prompts) == 8, "the held-out ones are among them"
    for problem, once in found.items():
        ((text, tokens),) = once
        assert (text, list(tokens)) == prompts[problem]
    assert len({text for text, _ in map(prompts.__getitem__, found)}) == 4, "the clock advanced between them"


@pytest.mark.parametrize("how", ["gone", "corrupt"])
def test_a_lost_record_is_reconstructed_from_the_rollouts(config, tmp_path, caplog, how):
    path = tmp_path / "run"
    attempt(config, path, until=1)
    record, before = path / "prompts.parquet", prompts_used(path)
    if how == "gone":
        record.unlink()
    else:
        content = bytearray(record.read_bytes())
        content[len(content) // 2] ^= 1
        record.write_bytes(content)
        settings, directory = prepare(config, [], path)
        assert [one.path for one in inspect(directory, settings)] == ["prompts.parquet"]
    attempt(config, path)
    assert "prompts.parquet" in caplog.text
    after = prompts_used(path)
    assert all(len(one) == 1 for one in after.values())
    assert {problem: after[problem] for problem in before} == before
    settings, directory = prepare(config, [], path)
    assert [one for result in check_run(directory, settings) for one in result.problems] == []


def test_a_dry_run_and_a_failed_check_leave_nothing(config, tmp_path):
    prepare(config, [], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All requests to engines."""
    seen: list[Any] = []
    generate = TransformersEngine.generate

    def noted(self: Any, given: Any, *rest: Any) -> Iterator[Any]:
        seen.extend(given)
        return generate(self, given, *rest)

    monkeypatch.setattr(TransformersEngine, "generate", noted)
    return seen


def evaluate(source: Path, out: Path, *overrides: str) -> None:
    selection._rendered.clear()
    source, protocol, directory = prepare_evaluation(str(source), None, ["samples=1", *overrides], None, out)
    with open_evaluation_context(directory, source, protocol) as context:
        list(run_benchmarks(context, stages))


def test_an_evaluation_repeats_no_request(model, tmp_path, requests, caplog):
    overrides = ["prompt={chat: true}", "max_tokens=3", "benchmarks=[{arithmetic: {digits: 1}, limit: 5}]"]
    evaluate(model, tmp_path / "e", *overrides)
    assert len(requests) == 5
    evaluate(model, tmp_path / "e", *overrides)
    assert len(requests) == 5
    evaluate(model, tmp_path / "e", *overrides, "samples=2")
    assert len(requests) == 15
    assert len({tuple(one.prompt_tokens) for one in requests}) == 5, "other settings use the same prompts"
    (record,) = (tmp_path / "e/prompts").glob("*.parquet")
    record.write_bytes(b"PAR1")
    evaluate(model, tmp_path / "e", *overrides)
    assert "is corrupt; rendering the prompts again" in caplog.text
    assert len(requests) == 20, "these are other prompts, an hour later"


def test_a_run_is_evaluated_with_its_own_prompts(config, tmp_path, requests):
    attempt(config, tmp_path / "run")
    own = read_prompts(tmp_path / "run/prompts.parquet")
    held_out = {tuple(own[one][1]) for one in own.table.column("problem").to_pylist()}
    requests.clear()
    for round in ("e", "again"):
        evaluate(tmp_path / "run", tmp_path / round)
    assert len(requests) == 8
    assert {tuple(one.prompt_tokens) for one in requests} < held_out


def test_imported_prompts_are_recorded_too(config, tmp_path, capsys):
    file = tmp_path / "responses.jsonl"
    rows = [{"problem": f"{number}+1=", "response": "7", "gold": "7"} for number in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        selection._rendered.clear()
        import_file(file, config, [], tmp_path / "imported", [], True)
    assert json.loads(capsys.readouterr().out.partition("\n}\n")[2])["was_there"]
    prompts = read_prompts(RunDirectory(tmp_path / "imported").prompts)
    assert prompts_used(tmp_path / "imported") == {
        row["problem"]: {(prompts[row["problem"]][0], tuple(prompts[row["problem"]][1]))} for row in rows
    }


def test_what_is_left_out_stays_left_out_with_a_warning(config, tmp_path, caplog):
    """The order of problems depends on it, and so does every round."""
    write_problems(tmp_path / "train.jsonl", ["1+1=", "x" * 120, "2+2=", "3×3=", "4+4="])
    values = yaml.safe_load(config.read_text())
    values["problems"]["train"]["unusable"] = "drop"
    config.write_text(yaml.safe_dump(values))
    attempt(config, tmp_path / "run", until=1)
    attempt(config, tmp_path / "run")
    assert set(prompts_used(tmp_path / "run")) == {"1+1=", "2+2=", "4+4="}
    said = [one.message for one in caplog.records if "problems are skipped" in one.message]
    assert len(said) == 2
    assert {one.partition("first of them ")[2] for one in said} == {
        f"{tmp_path}/train.jsonl:2: its prompt has 141 tokens"
    }
