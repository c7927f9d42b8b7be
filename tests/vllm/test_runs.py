"""Whole runs that generate with vLLM: streamed shards, interrupted rounds, the mismatch check, resuming."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from reval.flows.rounds import train_rounds
from reval_core.engines.choice import choose
from reval_core.engines.vllm import VllmEngine
from reval_core.errors import RunStopped
from reval_core.maintenance.check import check_run
from reval_core.model.loading import load_model
from reval_core.pipeline.run_context import open_run_context
from reval_core.replay_buffer.index import sql_views
from reval_core.report.summary import summarise
from reval_core.stages.generation import Shards
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table
from tests.runs import run, small_config

pytest.importorskip("vllm")

VLLM = {
    "engine": {"kind": "vllm", "dtype": "float32", "kv_cache_gib": 0.25, "max_num_seqs": 64},
    # vLLM's CPU attention supports head sizes of 32 and more.
    "model__tiny": {"layers": 2, "width": 64, "heads": 2, "feed_forward": 128},
}


def config(**settings):
    return small_config(**VLLM | settings)


def ask(path, query):
    with sql_views(path, RunDirectory(path).manifests()) as connection:
        return connection.sql(query).fetchall()


def problems(path, settings):
    return [problem for result in check_run(RunDirectory(path), settings) for problem in result.problems]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of three rounds."""
    path = tmp_path_factory.mktemp("finished") / "runs" / "small"
    return path, run(path, config())


def test_a_run_generates_with_vllm_and_records_it(finished):
    path, summary = finished
    assert summary["engine"] == "vllm"
    assert ask(path, "SELECT DISTINCT engine FROM trajectories") == [("vllm",)]
    assert ask(path, "SELECT round, count(*) FROM trajectories GROUP BY round ORDER BY round") == [
        (1, 64),
        (2, 64),
        (3, 64),
    ]
    assert ask(path, "SELECT count(*) FROM trajectories WHERE list_distinct(policy_rounds) <> [round - 1]") == [
        (0,)
    ]
    assert json.loads((path / "machine.json").read_text())["engine"] == "vllm"


def test_the_gap_is_recorded_and_small_in_float32(finished):
    path, _ = finished
    for gap, kl in ask(path, "SELECT engine_gap, engine_kl FROM rounds"):
        assert 0 <= gap < 1e-4
        assert 0 <= kl < 1e-6
    first, *later = (lag for (lag,) in ask(path, "SELECT engine_lag FROM rounds ORDER BY round"))
    assert first is None
    assert max(map(abs, later)) < 0.01


def test_a_shard_holds_whole_groups_in_the_order_in_which_they_finished(finished):
    path, _ = finished
    groups = ask(path, "SELECT round, prompt_id, count(*), count(DISTINCT shard) FROM trajectories GROUP BY 1, 2")
    assert {(count, shards) for _, _, count, shards in groups} == {(4, 1)}
    assert ask(path, "SELECT DISTINCT shard FROM trajectories ORDER BY shard") == [(0,), (1,)]


def test_check_finds_no_problems_and_the_weights_follow_from_the_draws(finished):
    path, _ = finished
    assert problems(path, config()) == []


def test_shards_of_a_crashed_attempt_are_kept_and_the_rest_is_generated(run_path, monkeypatch):
    publish, published = Shards.publish, []

    def crash_after_one(self, make, groups):
        if published:
            raise KeyboardInterrupt
        publish(self, make, groups)
        published.append(groups)

    monkeypatch.setattr(Shards, "publish", crash_after_one)
    with pytest.raises(KeyboardInterrupt):
        run(run_path, config(rounds=1))
    monkeypatch.setattr(Shards, "publish", publish)
    shard = run_path / "rollouts/round=00001/shard-000.parquet"
    before = shard.read_bytes()
    run(run_path, config(rounds=1))
    assert shard.read_bytes() == before
    assert RunDirectory(run_path).manifest("rollouts", 1).info["shards_reused"] == 1
    assert ask(
        run_path, "SELECT count(*), count(DISTINCT trajectory_id), max(trajectory_id % 1000) FROM trajectories"
    ) == [(64, 64, 63)]


def test_an_interrupted_round_continues_with_the_next_policy(run_path, monkeypatch):
    # 16 prompts × 4 responses do not fit into 60 tokens. Shards of 3 prompts, so that the last one is shorter.
    rollouts = {"prompts": 16, "samples": 4, "max_tokens": 4, "prompts_per_shard": 3, "budget_tokens": 60}
    settings = config(rounds=4, rollouts=rollouts, engine=VLLM["engine"] | {"max_num_seqs": 16})
    partials = Shards.publish_partials

    def crash(self, make):
        raise KeyboardInterrupt

    monkeypatch.setattr(Shards, "publish_partials", crash)
    with pytest.raises(KeyboardInterrupt):
        run(run_path, settings)
    monkeypatch.setattr(Shards, "publish_partials", partials)
    kept = len(list((run_path / "rollouts/round=00001").glob("shard-*.json")))
    summary = run(run_path, settings)
    assert RunDirectory(run_path).manifest("rollouts", 1).info["shards_reused"] == kept > 0
    assert (
        ask(run_path, "SELECT max(trajectory_id % 10000000) - count(*) FROM trajectories GROUP BY round")
        == [(-1,)] * 4
    ), "indices without gaps, because scores are looked up by them"
    assert summary["rounds"] == 4
    counts = dict(ask(run_path, "SELECT round, count(*) FROM trajectories GROUP BY round"))
    assert all(0 < counts[round] < 64 for round in range(1, 5))
    assert ask(run_path, "SELECT count(*) FROM trajectories WHERE finish_reason = 'partial'") == [(0,)]
    assert ask(run_path, "SELECT count(*) > 0 FROM partials WHERE finish_reason = 'partial'") == [(True,)]
    # No partial response is lost: each continued response starts with the tokens that existed.
    carried = ask(
        run_path,
        """
        SELECT p.response_tokens, p.policy_rounds, t.response_tokens, t.policy_rounds, p.finish_reason, t.round
        FROM partials p JOIN (SELECT * FROM trajectories UNION ALL SELECT * FROM partials) t
        ON t.prompt_id = p.prompt_id AND t.sample = p.sample AND t.round = p.round + 1
        """,
    )
    assert len(carried) == sum(
        row[0] for row in ask(run_path, "SELECT count(*) FROM partials WHERE round < 4 GROUP BY round")
    )
    mixed = 0
    for tokens, writers, later_tokens, later_writers, reason, round in carried:
        assert later_tokens[: len(tokens)] == tokens
        assert later_writers[: len(writers)] == writers
        assert set(later_writers[len(writers) :]) <= {round - 1}
        assert reason == "partial" or later_tokens == tokens
        mixed += len(set(later_writers)) > 1
    assert mixed > 0, "some responses were written by two policies"
    # The gap only covers tokens that the current policy wrote.
    assert all(gap < 1e-4 for (gap,) in ask(run_path, "SELECT engine_gap FROM rounds"))
    assert problems(run_path, settings) == []


def test_stale_weights_stop_the_run_and_are_named(run_path, monkeypatch):
    """The engine keeps the first policy's weights, as if synchronization did nothing."""
    load = VllmEngine.load

    def stale(self, model, policy):
        if self._loaded is None:
            load(self, model, policy)

    settings = config(
        rounds=4, learner={"updates": 4, "lr": 1e-2}, engine=VLLM["engine"] | {"mismatch_limit": 0.01}
    )
    monkeypatch.setattr(VllmEngine, "load", stale)
    with pytest.raises(RunStopped, match="mismatch_limit") as stopped:
        run(run_path, settings)
    message = str(stopped.value)
    assert "round 2: engine vllm and trainer differ" in message
    assert "stale weights: the engine still has the policy of round 0" in message
    assert (run_path / "rollouts/round=00002.damaged/shard-000.parquet").exists()
    monkeypatch.setattr(VllmEngine, "load", load)
    assert run(run_path, settings)["rounds"] == 4, "with correct weights the run resumes"
    assert problems(run_path, settings) == []


def test_a_sync_that_is_one_round_late_stops_the_run_below_the_limit(run_path, monkeypatch):
    load, given = VllmEngine.load, []

    def late(self, model, policy):
        given.append(copy.deepcopy(model))
        load(self, given[-2:][0], policy)

    monkeypatch.setattr(VllmEngine, "load", late)
    with pytest.raises(RunStopped, match=r"round 2: stale weights: engine vllm .* policy of round 0\."):
        run(run_path, config(learner={"updates": 2, "lr": 1e-4}))
    ((gap,),) = ask(run_path, "SELECT engine_gap FROM rounds")
    assert gap < 1e-4, "in round 1 there are no earlier weights"


def test_a_wrong_temperature_is_named(run_path, monkeypatch):
    generate = VllmEngine.generate

    def hot(self, requests, sampling, enough=None):
        return generate(self, requests, replace(sampling, temperature=1.0), enough)

    monkeypatch.setattr(VllmEngine, "generate", hot)
    rollouts = {"prompts": 16, "samples": 4, "max_tokens": 4, "temperature": 0.6}
    with pytest.raises(RunStopped, match=r"temperature: the engine's log-probs match a temperature of 1, but"):
        run(run_path, config(rollouts=rollouts))


def test_in_bfloat16_engine_and_trainer_hold_the_same_copy(run_path):
    """Updates of 1e-5 are smaller than the spacing of bfloat16; a gap would show that one of the two loses them."""
    settings = config(
        rounds=3,
        learner={"updates": 8, "lr": 1e-5, "precision": "bfloat16"},
        engine=VLLM["engine"] | {"dtype": "bfloat16"},
    )
    run(run_path, settings)
    gaps = [gap for (gap,) in ask(run_path, "SELECT engine_gap FROM rounds ORDER BY round")]
    assert len(gaps) == 3
    assert max(gaps) < 0.03
    assert gaps[-1] < 2 * gaps[0], "it does not grow with the updates"
    assert all(lag is None or lag < 0.5 for (lag,) in ask(run_path, "SELECT engine_lag FROM rounds"))


def test_grpo_corrects_by_the_engines_own_probabilities(run_path):
    """In bfloat16 the engine's policy differs slightly from the trainer's, and the ratio corrects for it."""
    settings = config(
        rounds=1, objective={"kind": "grpo"}, learner={"updates": 1, "lr": 1e-3},
        engine=VLLM["engine"] | {"dtype": "bfloat16"},
    )  # fmt: skip
    run(run_path, settings)
    ((gap,),) = ask(run_path, "SELECT engine_gap FROM rounds")
    assert 1e-4 < gap < 0.1
    rows = ask(
        run_path,
        """
        SELECT t.engine_logprobs, s.policy_logprobs, v.advantage
        FROM trajectories t JOIN scores s USING (trajectory_id) JOIN verdicts v USING (trajectory_id)
        """,
    )
    # In the first update the policy is still the one that wrote the tokens, so the loss is only the correction.
    corrected = [
        -advantage * np.minimum(np.exp(np.array(trainer) - np.array(engine)), 2.0).mean()
        for engine, trainer, advantage in rows
    ]
    ((loss,),) = ask(run_path, "SELECT loss FROM updates")
    assert loss == pytest.approx(np.mean(corrected), abs=1e-6)
    assert abs(loss) > 1e-5, "without the correction the loss is the mean advantage, which is 0"


def test_a_run_is_evaluated_by_the_engine_without_a_second_model(finished):
    path, _ = finished
    manifests = RunDirectory(path).manifests(("evaluation",))
    assert [one.round for one in manifests] == [0, 2, 3]
    rows = read_table(path / manifests[0].files[0].path)
    assert set(rows.column("finish_reason").to_pylist()) <= {"stop", "length"}


def test_auto_keeps_the_engine_of_the_run(run_path, monkeypatch):
    settings = config(rounds=1, engine={"kind": "auto"})
    monkeypatch.setattr("reval_core.engines.choice.CROSSOVER", 0)
    run(run_path, settings)
    assert json.loads((run_path / "machine.json").read_text())["engine"] == "transformers"
    monkeypatch.setattr("reval_core.engines.choice.CROSSOVER", 10**9)
    assert choose(settings.model, settings.engine).kind == "vllm"
    small = small_config(engine={"kind": "auto"})
    assert choose(small.model, small.engine).kind == "transformers", "heads of 16"
    with open_run_context(RunDirectory(run_path), settings.model_copy(update={"rounds": 2})) as context:
        assert context.engine.name == "transformers"
        list(train_rounds(context))
    assert summarise(RunDirectory(run_path))["engine"] == "transformers"
    assert load_model(RunDirectory(run_path).checkpoint(2)) is not None
