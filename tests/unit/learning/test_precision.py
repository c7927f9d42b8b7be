"""The precision of a run whose config leaves it open is resolved once, when the run begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from reval.flows.preparation import prepare
from reval_core.config import Learner
from reval_core.config.loader import load_config
from reval_core.errors import InputError
from reval_core.learning.precision import settled_learner
from reval_core.learning.resolution import resolved
from reval_core.pipeline.run_context import open_run_context
from reval_core.storage.run_directory import RunDirectory
from tests.conftest import SMALL
from tests.runs import run, small_config

DEFAULT = "reval_core.learning.precision.default_precision"


def test_without_a_gpu_it_is_float32_and_the_settings_are_unchanged() -> None:
    settings = Learner(updates=1, lr=1)
    assert settled_learner(settings) == Learner(updates=1, lr=1, precision="float32", gradient_checkpointing=False)
    assert "deterministic" not in settings.model_dump(), "a setting that is off changes no identity"


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_on_a_gpu_it_is_bfloat16_if_supported_without_emulation(
    supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or supported
    )
    assert settled_learner(Learner(updates=1, lr=1)).precision == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_in_the_config_is_kept(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(learner__precision=precision, learner__gradient_checkpointing=False)
    assert resolved(config) is config


def test_a_run_records_its_precision_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(DEFAULT, lambda: "bfloat16")
        run(directory.path, small_config(), until=0)
    assert load_config(directory.config).learner.precision == "bfloat16"
    with open_run_context(directory, small_config()) as context:
        assert context.config.learner.precision == "bfloat16"
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    assert prepare(config, [], directory.path).config.learner.precision == "bfloat16"
    with pytest.raises(InputError, match=r"made with another config \(learner\.precision differ\)"):
        prepare(config, ["learner.precision=float32"], directory.path)


def test_flash_attention_needs_a_machine_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(model__attention="flash_attention_2")
    with pytest.raises(InputError, match=r"^model\.attention: flash_attention_2 computes in bfloat16"):
        resolved(config)
    monkeypatch.setattr(DEFAULT, lambda: "bfloat16")
    assert resolved(config).learner.precision == "bfloat16"
