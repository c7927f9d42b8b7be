"""The code in the documentation runs unchanged."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from reval_core.config import CustomObjective
from reval_core.config import Learner as Settings
from reval_core.learning.learner import Learner
from tests.models import drawn, tiny_model

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_learner_can_be_used_alone_as_its_page_shows(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    (program,) = blocks("learner.md", "python")
    exec(compile(program, "learner.md", "exec"), {"MODEL": str(tmp_path)})
    loss, norm, *_ = capsys.readouterr().out.split()
    assert float(loss) == pytest.approx(50.0, rel=1e-3), "the mean of (1/β)² and 0"
    assert float(norm) > 0


def test_the_objective_of_the_page_trains(tmp_path, monkeypatch):
    (program,), (settings,) = blocks("objectives.md", "python"), blocks("objectives.md", "yaml")
    (tmp_path / "pinball.py").write_text(program, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "pinball", raising=False)
    objective = CustomObjective(**yaml.safe_load(settings)["objective"])
    model = tiny_model()
    learner = Learner(model, objective, Settings(updates=1, lr=3e-3), "start")
    updates = learner.learn([drawn(model)] * 30)
    assert updates[-1].loss < 0.7 * updates[0].loss
    assert 0 <= updates[0].metrics["below"] <= 1
