"""An evaluation that generates with vLLM: streamed shards, and resuming after an interruption."""

import pytest

from reval.flows.preparation import prepare_evaluation
from reval.flows.rounds import run_benchmarks
from reval_core.config import TinyModel
from reval_core.evaluation.context import open_evaluation_context
from reval_core.evaluation.directory import published_tables
from reval_core.evaluation.results import find_results
from reval_core.model.loading import make_tiny_model, make_tiny_tokenizer, save_model
from reval_core.replay_buffer.index import sql_views
from reval_core.stages.generation import Shards

pytest.importorskip("vllm")

OVERRIDES = [
    "benchmarks=[{arithmetic: {digits: 1}, limit: 9}, {arithmetic: {digits: 1, operators: '-'}, limit: 4}]",
    "prompt={}",
    "samples=3",
    "max_tokens=6",
    "problems_per_shard=2",
    "engine={kind: vllm, dtype: float32, kv_cache_gib: 0.25, max_num_seqs: 64}",
    "verification={methods: [whole]}",
]


def evaluate(model, out):
    prepared = prepare_evaluation(str(model), None, OVERRIDES, None, out)
    source, protocol, directory = prepared.source, prepared.protocol, prepared.directory
    with open_evaluation_context(directory, source, protocol) as context:
        benchmarks = list(run_benchmarks(context))
    return find_results(directory, source, protocol, benchmarks)


def test_finished_shards_are_kept_and_no_response_is_missing_or_duplicated(tmp_path, monkeypatch):
    # vLLM's CPU attention supports head sizes of 32 and more.
    settings = TinyModel(layers=2, width=64, heads=2, feed_forward=128)
    save_model(make_tiny_model(settings, seed=0), make_tiny_tokenizer(settings.characters), tmp_path / "model")
    publish, published = Shards.publish, []

    def crash_after_two(self, make, groups):
        if len(published) == 2:
            raise KeyboardInterrupt
        publish(self, make, groups)
        published.append(groups)

    monkeypatch.setattr(Shards, "publish", crash_after_two)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "model", tmp_path / "e")
    monkeypatch.setattr(Shards, "publish", publish)
    shards = sorted((tmp_path / "e").glob("rollouts/*/shard-*.parquet"))
    before = [path.read_bytes() for path in shards]
    assert len(before) == 2
    results = evaluate(tmp_path / "model", tmp_path / "e")
    assert [path.read_bytes() for path in shards] == before
    assert [(one["name"], one["problems"]) for one in results["benchmarks"]] == [
        ("1-digit sums", 9),
        ("1-digit differences", 4),
    ]
    with sql_views(tmp_path / "e", published_tables(tmp_path / "e")) as connection:
        rows = connection.sql(
            "SELECT count(*), count(DISTINCT trajectory_id), count(DISTINCT (problem_set, prompt_id, sample)), "
            "min(len(response_tokens) = len(engine_logprobs)) FROM trajectories"
        ).fetchall()
        assert rows == [(39, 39, 39, True)]
        right = connection.sql(
            "SELECT avg(correct::INT) FROM evaluations WHERE problem_set = '1-digit sums'"
        ).fetchall()
    assert results["benchmarks"][0]["avg@3"]["mean"] == pytest.approx(right[0][0])
