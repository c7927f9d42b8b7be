"""Every file in examples/ runs."""

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from reval_core.config import CustomObjective, Model, Reward
from reval_core.config import Learner as Settings
from reval_core.learning.learner import Learner
from reval_core.model.loading import check_model, load_tokenizer
from reval_core.verification import Claim, Verifier
from tests.models import drawn, save_byte_level_model, tiny_model
from tests.runs import run, small_config

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def in_examples(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("custom_objective", "custom_reward"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_every_example_compiles_and_is_tested_here():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    tested = {"plain_torch_loop.py", "trl_trainer.py", "custom_objective.py", "custom_reward.py", "small_model.py"}
    assert names == tested
    for path in EXAMPLES.glob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


def test_the_notebook_reads_a_finished_run(tmp_path, monkeypatch):
    run(tmp_path / "runs" / "demo", small_config())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / "finished_run.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    scope: dict[str, object] = {}
    for number, cell in enumerate(cells, 1):
        exec(compile(cell, f"finished_run.ipynb, cell {number}", "exec"), scope)
    assert len(scope["rounds"]) == 3
    assert len(scope["responses"]) == 192


def test_the_plain_torch_loop_learns():
    means = runpy.run_path(str(EXAMPLES / "plain_torch_loop.py"))["main"]()
    assert means[0] < 0.2
    assert means[-1] > 0.4


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
def test_the_trl_trainer_trains(tmp_path):
    save_byte_level_model(tmp_path / "model")
    example = runpy.run_path(str(EXAMPLES / "trl_trainer.py"))
    log = example["main"](str(tmp_path / "model"), str(tmp_path / "out"), steps=2)
    steps = [entry for entry in log if "grad_norm" in entry]
    assert len(steps) == 2
    assert all(float(entry["loss"]) >= 0 and float(entry["grad_norm"]) > 0 for entry in steps)


def test_the_small_model_of_the_tutorial_is_one_that_reval_loads(tmp_path):
    example = runpy.run_path(str(EXAMPLES / "small_model.py"))
    example["main"](EXAMPLES.parent / "data" / "gsm8k-64.jsonl", tmp_path / "model", steps=2)
    check_model(Model(path=str(tmp_path / "model")))
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.decode(tokenizer("½ of 1,657 €?")["input_ids"]) == "½ of 1,657 €?"


@pytest.mark.usefixtures("in_examples")
def test_the_custom_objective_is_learned_from():
    settings = {"beta": 0.3, "margin": 0.5}
    objective = CustomObjective(kind="custom", function="custom_objective:margin", settings=settings)
    model = tiny_model()
    updates = Learner(model, objective, Settings(updates=1, lr=3e-3), "start").learn([drawn(model)] * 20)
    assert updates[-1].loss < 0.9 * updates[0].loss
    assert 0 <= updates[0].metrics["within"] <= 1


@pytest.mark.usefixtures("in_examples")
def test_the_custom_reward_judges():
    reward = Reward(function="custom_reward:close", settings={"scale": 10.0})  # as a config checks it
    with Verifier(workers=1, timeout_seconds=60, function=reward.function, settings=reward.settings) as verifier:
        judged = verifier.judge([Claim("2", response) for response in ("2", "-3", "7", "20", "two")])
    assert [one.outcome for one in judged] == pytest.approx([1.0, 0.5, 0.5, 0.0, 0.0])
