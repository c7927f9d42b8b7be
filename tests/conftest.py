"""What all tests share: small settings, and a home of their own for everything that would outlive them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DO_NOT_TRACK"] = "1"

SMALL: dict[str, Any] = {
    "seed": 0,
    "rounds": 3,
    "threads": 1,
    "model": {
        "tiny": {"layers": 2, "width": 64, "heads": 4, "feed_forward": 128},
        "warm_start": {"steps": 150, "batch": 128, "lr": 3e-3, "right": 0.4},
    },
    "problems": {
        "train": {"arithmetic": {"digits": 1, "operators": "+", "split": "train"}},
        "held_out": {"arithmetic": {"digits": 1, "operators": "+", "split": "held_out"}},
    },
    "rollouts": {"prompts": 16, "samples": 4, "max_tokens": 4, "prompts_per_shard": 8},
    "verification": {"methods": ["whole"]},
    "objective": {"kind": "reval", "beta": 0.1},
    "replay": {"capacity": 160},
    "learner": {"updates": 2, "lr": 1e-3},
    "evaluation": {"every": 2, "samples": 2},
    "checkpoints": {"every": 2},
}
"""A run of seconds: one-digit sums, a model of 85,000 parameters, two shards a round."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The suite fits one small policy and shares it, in a cache that goes with the session."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The same number of threads whatever ran before: results depend on it."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    """The path of a run directory for a test."""
    return tmp_path / "runs" / "small"
