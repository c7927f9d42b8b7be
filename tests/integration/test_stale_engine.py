"""Engines whose weights are not the policy's: detected by the lag, even if they differ little."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from reval_core.engines.transformers import TransformersEngine
from reval_core.errors import RunStopped
from reval_core.replay_buffer.index import sql_views
from reval_core.storage.run_directory import RunDirectory
from tests.runs import run, small_config


class OwnWeights(TransformersEngine):
    """Generates with a copy of the published weights, like an engine in another process."""

    dtype: Any = torch.float32

    def load(self, model: Any, policy: str) -> None:
        """Take a copy."""
        self._model = copy.deepcopy(model)


class OneRoundStale(OwnWeights):
    """Its weights are one round late."""

    _next: Any = None

    def load(self, model: Any, policy: str) -> None:
        """Take the previous weights."""
        self._model, self._next = self._next or copy.deepcopy(model), copy.deepcopy(model)


def engine_of(kind: type[TransformersEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make runs generate with engines of this kind."""
    monkeypatch.setattr("reval_core.pipeline.run_context.make_engine", lambda *_: kind(0))


def lags(path: Path) -> list[float | None]:
    """The lag of each round, from its column."""
    with sql_views(path, RunDirectory(path).manifests()) as connection:
        return [lag for (lag,) in connection.sql("SELECT engine_lag FROM rounds ORDER BY round").fetchall()]


ADAPTERS = {"model__lora": {"rank": 4, "alpha": 8}, "learner": {"updates": 2, "lr": 1e-2, "precision": "bfloat16"}}


@pytest.mark.parametrize("changes", [{}, ADAPTERS], ids=["float32", "adapters-in-bfloat16"])
def test_an_engine_in_step_has_no_lag_also_after_a_restart(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted with a checkpoint of the policy itself, and with one that is a round older."""
    engine_of(OwnWeights, monkeypatch)
    config = small_config(rounds=4, evaluation__every=4, **changes)
    run(tmp_path / "whole", config)
    found = lags(tmp_path / "whole")
    assert found[0] is None, "nothing was learned before round 1"
    assert all(lag is not None and abs(lag) < 0.05 for lag in found[1:])
    run(tmp_path / "broken", config, until=2)
    run(tmp_path / "broken", config, until=3)
    run(tmp_path / "broken", config)
    assert lags(tmp_path / "broken") == found
    info = [RunDirectory(tmp_path / name).manifest("consistency", 3).info for name in ("whole", "broken")]  # type: ignore[union-attr]
    assert info[0]["engine_lag"] == info[1]["engine_lag"]
    digests = [RunDirectory(tmp_path / name).manifest("learning", 4).info["policy"] for name in ("whole", "broken")]  # type: ignore[union-attr]
    assert digests[0] == digests[1], "the weights are restored after scoring with those of the previous round"


def test_an_engine_that_is_one_round_stale_stops_the_run_below_the_limit(
    run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(rounds=3, engine__mismatch_limit=100.0, evaluation__every=3)
    engine_of(OneRoundStale, monkeypatch)
    with pytest.raises(RunStopped) as stopped:
        run(run_path, config)
    message = str(stopped.value)
    assert message.startswith("round 2: stale weights: engine transformers generates with the policy of round 0.")
    assert "lack 100%" in message
    assert (run_path / "rollouts/round=00002.damaged/shard-000.parquet").exists()
    assert RunDirectory(run_path).manifest("consistency", 2) is None, "they were not trained on"
    engine_of(OwnWeights, monkeypatch)
    run(run_path, config)
    assert all(lag is not None and abs(lag) < 0.05 for lag in lags(run_path)[1:])


def test_above_the_limit_the_previous_round_is_named_without_its_checkpoint(
    run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are written every second round: that of round 1 does not exist."""

    class StaleLater(OneRoundStale):
        _loads = 0

        def load(self, model: Any, policy: str) -> None:
            self._loads += 1
            if self._loads < 4:  # before training, rounds 1 and 2
                self._next = copy.deepcopy(model)
                self._model = self._next
            else:
                super().load(model, policy)

    engine_of(StaleLater, monkeypatch)
    config = small_config(
        rounds=3, engine__mismatch_limit=0.01, evaluation__every=3, checkpoints__every=3, learner__lr=3e-3
    )
    with pytest.raises(RunStopped, match=r"round 3: .*stale weights: the engine still has the policy of round 1"):
        run(run_path, config)


def test_an_engine_that_shares_the_learners_weights_has_no_lag_to_measure(run_path: Path) -> None:
    run(run_path, small_config(rounds=2, evaluation__every=2))
    assert lags(run_path) == [None, None]
