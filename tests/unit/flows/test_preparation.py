"""What is refused before a run starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import reval
from reval.flows import foreground
from reval.flows.cli.train import train_and_show
from reval.flows.preparation import prepare
from reval_core.errors import InputError, RunStopped
from reval_core.planning import gpu_memory
from reval_core.planning.forecast import forecast
from reval_core.planning.gpu_memory import Card
from reval_core.storage.run_directory import RunDirectory
from tests.conftest import SMALL
from tests.runs import run, small_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    return path


def test_a_full_disk_is_refused_with_the_space_that_the_run_needs(config, tmp_path, monkeypatch):
    monkeypatch.setattr(RunDirectory, "free_bytes", lambda directory: 1_000_000)
    with pytest.raises(InputError, match=r"needs about \d+ MB and the disk has 1 MB free; make space"):
        prepare(config, ["rounds=20"], tmp_path / "run")


SMALL_GPU, FULL_GPU = Card("Small GPU", 15 * 10**8, 15 * 10**8), Card("Large GPU", 80 * 10**9, 10**9)


def test_a_stage_that_does_not_fit_the_gpu_is_refused_unless_overridden(config, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_memory, "card", lambda: SMALL_GPU)
    refused = (
        rf"^{re.escape(str(config))}: learning needs about \d+\.\d GB of GPU memory, and the GPU has 1\.5 GB; "
        r"set learner\.gradient_checkpointing: true, .*; to run it anyway, set memory_check: warn$"
    )
    plain = "learner.gradient_checkpointing=false"
    with pytest.raises(InputError, match=refused):
        prepare(config, [plain], tmp_path / "run")
    notes = prepare(config, [plain, "memory_check=warn"], tmp_path / "run").notes
    assert notes[0] == "learner.precision: float32 on Small GPU"
    assert notes[1].startswith("learning needs about")


def test_gradient_checkpointing_is_chosen_where_an_update_would_not_fit_and_kept(config, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_memory, "card", lambda: SMALL_GPU)
    prepared = prepare(config, [], tmp_path / "run")
    settings, directory = prepared.config, prepared.directory
    assert settings.learner.gradient_checkpointing is True
    directory.open(settings)
    for card in (FULL_GPU, None):
        monkeypatch.setattr(gpu_memory, "card", lambda card=card: card)
        assert prepare(config, [], tmp_path / "run").config.learner.gradient_checkpointing is True
        assert prepare(config, [], tmp_path / "other").config.learner.gradient_checkpointing is False
    with pytest.raises(InputError, match=r"another config \(learner\.gradient_checkpointing differ\)"):
        prepare(config, ["learner.gradient_checkpointing=false"], tmp_path / "run")


def test_a_gpu_in_use_gives_a_note(config, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_memory, "card", lambda: FULL_GPU)
    assert (
        prepare(config, [], tmp_path / "run")
        .notes[1]
        .endswith("1.0 GB of the GPU are free; stop other processes on it")
    )


def test_without_a_gpu_there_are_no_notes(config, tmp_path):
    assert prepare(config, ["learner.micro_batch_tokens=1000000000"], tmp_path / "run").notes == []


def test_the_api_prints_the_notes_of_the_command(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_memory, "card", lambda: FULL_GPU)
    monkeypatch.setattr(foreground, "run_flow", lambda flow: True)
    monkeypatch.setattr("reval.flows.show.show_summary", lambda directory, as_json: None)
    train_and_show(config, [], tmp_path / "run", as_json=False)
    said = capsys.readouterr().err
    assert "1.0 GB of the GPU are free" in said
    assert reval.train(config, run_dir=tmp_path / "run").path == tmp_path / "run"
    assert capsys.readouterr().err == said


def test_a_run_whose_end_prefect_does_not_know_gives_a_warning_if_it_is_finished(config, tmp_path, monkeypatch):
    monkeypatch.setattr(foreground, "run_flow", lambda flow: False)
    with pytest.raises(RunStopped, match=r"stopped responding; restart it, then run reval resume .*run$"):
        reval.train(config, run_dir=tmp_path / "run")
    monkeypatch.setattr(RunDirectory, "is_finished", lambda directory, config: True)
    with pytest.warns(RuntimeWarning, match="its UI does not show how this run ended"):
        reval.train(config, run_dir=tmp_path / "run")


def test_memory_check_may_change_during_a_run(config, tmp_path):
    prepare(config, [], tmp_path / "run").directory.open(small_config())
    settings = prepare(config, ["memory_check=warn"], tmp_path / "run").config
    assert settings.memory_check == "warn"


def test_more_prompts_per_round_than_problems_are_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"rollouts\.prompts: 200 per round, but problems\.train has only \d+"):
        prepare(config, ["rollouts.prompts=200", "replay.capacity=1000"], tmp_path / "run")


def test_a_problem_file_is_checked_line_by_line_before_anything_is_created(config, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "1+1=", "answer": "2"}\n{"problem": "1+2=", "answer": ""}\n')
    override = f"problems.held_out={{path: {problems}}}"
    with pytest.raises(InputError, match=r"problems\.jsonl:2: answer: is empty"):
        prepare(config, [override], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_problems_that_are_also_held_out_are_refused_unless_kept(config, tmp_path):
    same = "problems.held_out={arithmetic: {digits: 1, split: train}}"
    with pytest.raises(InputError, match=r"problems\.train: \d+ of \d+ problems also occur in the test sets"):
        prepare(config, [same], tmp_path / "run")
    settings = prepare(config, [same, "problems.contaminated=keep"], tmp_path / "run").config
    assert settings.problems.contaminated == "keep"


def test_the_default_run_directory_is_named_after_the_config(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare(config, [], None).directory.path == tmp_path / "runs" / "small"


def test_the_forecast_covers_a_run_and_is_less_than_a_hundred_times_too_large(tmp_path):
    config = small_config(rounds=2)
    run(tmp_path / "run", config)
    taken = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    expected = forecast(config).disk_bytes
    assert taken < expected < 100 * taken
