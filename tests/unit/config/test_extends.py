"""A config that extends another."""

from pathlib import Path

import pytest

from reval_core.config import (
    Config,
    Grpo,
    Reval,
    Tbrm,
)
from reval_core.errors import InputError
from tests.unit.config.documents import RUN, load


def extended(directory: Path, base: str, own: str) -> Config:
    (directory / "base.yaml").write_text(base, encoding="utf-8")
    return load(directory, f"extends: base.yaml\n{own}")


def test_a_file_that_extends_another_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    config = extended(
        tmp_path, RUN, "rounds: 5\nlearner: {lr: 0.5}\nmodel: {tiny: {layers: 3}}\nreplay: {capacity: 9}"
    )
    changed = ("rounds=5", "learner.lr=0.5", "model.tiny.layers=3", "replay.capacity=9")
    assert config == load(tmp_path, RUN, *changed)
    assert "extends" not in config.model_dump()


def test_a_section_of_another_kind_replaces_the_extended_one(tmp_path: Path) -> None:
    assert extended(tmp_path, RUN, "objective: {kind: grpo}").objective == Grpo(kind="grpo")
    assert extended(tmp_path, RUN, "objective: {kind: tbrm, beta: 2}").objective == Tbrm(kind="tbrm", beta=2)
    assert extended(tmp_path, RUN, "objective: {kind: reval, huber: 3}").objective == Reval(
        kind="reval", beta=0.05, huber=3
    )


def test_extends_can_be_chained_and_is_relative_to_each_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "base.yaml").write_text(RUN, encoding="utf-8")
    (tmp_path / "inner/middle.yaml").write_text("extends: ../base.yaml\nseed: 1\nrounds: 7", encoding="utf-8")
    config = load(tmp_path, "extends: inner/middle.yaml\nseed: 2")
    assert (config.seed, config.rounds, config.learner.updates) == (2, 7, 2)


@pytest.mark.parametrize(
    ("base", "own", "message"),
    [
        (RUN.replace("lr: 1.0e-4", "lr: -1"), "seed: 1", "base.yaml:19: learner.lr: input should be greater"),
        (RUN, "seed: 1\nlearner: {lr: -1}", "run.yaml:3: learner.lr: input should be greater"),
        (RUN, "learner: {rl: 1}", "run.yaml:2: learner.rl: unknown key; did you mean 'lr'?"),
        (RUN.replace("seed", "sede"), "rounds: 1", "base.yaml:1: sede: unknown key"),
        (RUN, "seed: 1\nobjective: {kind: tbrm}", "run.yaml:3: objective.beta: is missing"),
        (RUN, "seed: 1\nrollouts: {samples: 5}", "base.yaml:16: replay.capacity: 16 is less than one round"),
        (RUN, "extends: base.yaml", "run.yaml:2: extends: is a duplicate key"),
        ("extends: run.yaml", "seed: 1", "base.yaml:1: extends: run.yaml extends itself"),
        ("extends: no.yaml", "seed: 1", "base.yaml:1: extends: no such file: no.yaml"),
        (
            "extends: [a]",
            "seed: 1",
            "base.yaml:1: extends: must be a path relative to this file's directory, not ['a']",
        ),
        ("seed: [", "seed: 1", "base.yaml:1: is not YAML"),
    ],
)
def test_an_error_names_the_file_at_fault(tmp_path: Path, base: str, own: str, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        extended(tmp_path, base, own)
    assert str(refusal.value).replace(f"{tmp_path}/", "").startswith(message)
