"""The initial policy of a warm start: its training data, and which runs share it."""

import json
from pathlib import Path

import numpy as np
import pytest

from reval_core import stages
from reval_core.config import Config
from reval_core.pipeline.run_context import open_run_context
from reval_core.problems import arithmetic
from reval_core.storage.run_directory import RunDirectory
from tests.runs import small_config


def initial_policy(path: Path, config: Config) -> str:
    with open_run_context(RunDirectory(path), config) as context:
        return str(stages.warm_start(context, 0).info["content"])


def test_runs_with_the_same_warm_start_seed_share_the_initial_policy(tmp_path: Path) -> None:
    shared = [
        initial_policy(tmp_path / str(seed), small_config(seed=seed, model__warm_start__seed=5)) for seed in (1, 2)
    ]
    assert shared[0] == shared[1]
    assert initial_policy(tmp_path / "own", small_config(seed=1)) != shared[0]
    assert initial_policy(tmp_path / "same", small_config(seed=5)) == shared[0]


def test_a_run_on_a_file_has_its_own_warm_start_arithmetic(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"problem": "3+4=", "answer": "7"}) + "\n")
    shown = [{"arithmetic": {"digits": 1}, "limit": 30}, {"arithmetic": {"digits": 1, "operators": "-"}}]
    config = small_config(problems__train={"path": str(file)}, model__warm_start__problems=shown)
    first = initial_policy(tmp_path / "first", config)
    other = small_config(problems__train={"path": str(file)}, model__warm_start__problems=shown[:1])
    assert initial_policy(tmp_path / "other", other) != first


def test_it_accepts_only_arithmetic(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"arithmetic problems only; name a set of them in model.warm_start.problems"
    ):
        small_config(problems__train={"path": "own.jsonl"})
    with pytest.raises(ValueError, match=r"arithmetic problems only"):
        small_config(model__warm_start__problems={"path": "own.jsonl"})


def test_mistakes_in_differences_have_the_sign_of_the_answer_or_come_near() -> None:
    rng = np.random.default_rng(0)
    negative = [int(arithmetic.plausible_mistake("12-62=", "-50", rng)) for _ in range(400)]
    assert np.median(negative) < -30
    positive = [int(arithmetic.plausible_mistake("62-12=", "50", rng)) for _ in range(400)]
    assert min(positive) >= 0
