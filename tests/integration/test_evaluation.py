"""Evaluations of small models: real engines, real shards, the real verifier."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.normalizers import Replace

from reval.flows.preparation import prepare_evaluation
from reval.flows.rounds import run_benchmarks
from reval_core.atomic_files import file_digest
from reval_core.engines.transformers import TransformersEngine
from reval_core.errors import InputError, RunStopped
from reval_core.evaluation.context import open_evaluation_context
from reval_core.evaluation.directory import EvaluationDirectory, published_tables
from reval_core.evaluation.results import find_results, results_markdown, results_rows
from reval_core.model.loading import load_model, load_tokenizer, save_model
from reval_core.replay_buffer.index import sql_views
from reval_core.report.sections import GAIN, HELD_OUT
from reval_core.storage.run_directory import RunDirectory
from tests.runs import run, small_config

SUMS = "benchmarks=[{arithmetic: {digits: 1, operators: '+', split: held_out}}]"
ASKED = ("prompt={}", "samples=4", "max_tokens=4", "problems_per_shard=3", "verification={methods: [whole]}")
"""All thirteen held-out one-digit sums, four answers each, in shards of three problems."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("trained") / "runs" / "small"
    run(path, small_config())
    return path


@pytest.fixture(scope="module")
def model(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its last policy as a model directory."""
    path = tmp_path_factory.mktemp("model") / "policy"
    checkpoint = RunDirectory(trained).checkpoint(3)
    save_model(load_model(checkpoint), load_tokenizer(checkpoint), path)
    return path


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of requests of each engine call."""
    calls: list[int] = []
    generate = TransformersEngine.generate

    def counted(self: Any, requests: Any, *rest: Any) -> Iterator[Any]:
        calls.append(len(requests))
        return generate(self, requests, *rest)

    monkeypatch.setattr(TransformersEngine, "generate", counted)
    return calls


def evaluate(model: Path, out: Path | None, *overrides: str, round: int | None = None) -> dict[str, Any]:
    """The results of an evaluation, without Prefect."""
    prepared = prepare_evaluation(str(model), None, [*ASKED, *overrides], round, out)
    source, protocol, directory = prepared.source, prepared.protocol, prepared.directory
    with open_evaluation_context(directory, source, protocol) as context:
        benchmarks = list(run_benchmarks(context))
    return find_results(directory, source, protocol, benchmarks)


@pytest.fixture(scope="module")
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An evaluation of the run, for reading, and its results."""
    path = tmp_path_factory.mktemp("finished") / "e"
    return path, evaluate(trained, path)


@pytest.fixture
def evaluated(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(finished[0], tmp_path / "e")


def ask(directory: Path, query: str) -> list[tuple]:
    return sql_views(directory, published_tables(directory)).execute(query).fetchall()


def without_clocks(results: dict[str, Any]) -> dict[str, Any]:
    benchmarks = [
        {name: one[name] for name in one if not name.endswith("seconds")} for one in results["benchmarks"]
    ]
    return {**results, "benchmarks": benchmarks}


def test_every_problem_is_sampled_and_the_metrics_are_those_of_the_rows(finished):
    path, results = finished
    (found,) = results["benchmarks"]
    rows = ask(path, "SELECT prompt_id, correct FROM evaluations ORDER BY prompt_id, sample")
    problems = sorted({prompt for prompt, _ in rows})
    right = np.array([[correct for prompt, correct in rows if prompt == one] for one in problems])
    assert right.shape == (13, 4)
    assert 0 < right.mean() < 1
    assert found["avg@4"]["mean"] == pytest.approx(right.mean())
    assert found["avg@4"]["low"] < right.mean() < found["avg@4"]["high"]
    assert found["pass@1"]["mean"] == pytest.approx(right.mean())
    assert found["pass@4"]["mean"] == pytest.approx(right.any(axis=1).mean())
    lengths = ask(path, "SELECT avg(response_length) FROM evaluations")
    assert found["tokens"] == pytest.approx(lengths[0][0])
    assert results["round"] == 3
    assert results["average"]["avg@4"] == found["avg@4"]


def test_responses_are_trajectories_with_tokens_and_join_nothing_twice(finished):
    path, _ = finished
    ((rows, ids, tokens, masks),) = ask(
        path,
        "SELECT count(*), count(DISTINCT trajectory_id), sum(len(response_tokens)), sum(len(engine_logprobs)) "
        "FROM trajectories",
    )
    assert rows == ids == 52
    assert tokens == masks > 52
    same = ask(
        path,
        "SELECT count(*) FROM trajectories JOIN evaluations USING (problem_set, prompt_id, sample, policy, round) "
        "WHERE trajectories.response = evaluations.response",
    )
    assert same == [(52,)]


def test_an_interrupted_evaluation_resumes_with_the_missing_shards(trained, finished, tmp_path, monkeypatch):
    generate = TransformersEngine.generate

    def failing(self: Any, requests: Any, *rest: Any) -> Iterator[Any]:
        if failing.calls == 2:
            raise KeyboardInterrupt
        failing.calls += 1
        return generate(self, requests, *rest)

    failing.calls = 0
    monkeypatch.setattr(TransformersEngine, "generate", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, tmp_path / "cut")
    shards = sorted((tmp_path / "cut").glob("rollouts/*/shard-*.parquet"))
    before = {path: (path.stat().st_mtime_ns, file_digest(path)) for path in shards}
    assert len(before) == 2
    monkeypatch.setattr(TransformersEngine, "generate", generate)
    assert without_clocks(evaluate(trained, tmp_path / "cut")) == without_clocks(finished[1])
    assert {path: (path.stat().st_mtime_ns, file_digest(path)) for path in shards} == before


def test_completed_evaluations_are_not_repeated(trained, tmp_path, engine_calls):
    first = evaluate(trained, tmp_path / "e")
    assert engine_calls == [12, 12, 12, 12, 4]
    assert evaluate(trained, tmp_path / "e") == first
    assert engine_calls == [12, 12, 12, 12, 4]
    # Another policy and another problem set are evaluated in addition.
    evaluate(trained, tmp_path / "e", round=0)
    assert sum(engine_calls) == 104
    both = evaluate(trained, tmp_path / "e", SUMS.replace("}}]", f"}}}}, {{path: '{own_problems(tmp_path)}'}}]"))
    assert sum(engine_calls) == 112
    assert [one["name"] for one in both["benchmarks"]] == ["1-digit sums", "own"]
    assert both["benchmarks"][0] == first["benchmarks"][0]
    means = [one["avg@4"]["mean"] for one in both["benchmarks"]]
    assert both["average"]["avg@4"]["mean"] == pytest.approx(sum(means) / 2)
    assert ask(tmp_path / "e", "SELECT count(DISTINCT policy), count(*) FROM evaluations") == [(2, 112)]


def own_problems(directory: Path) -> Path:
    path = directory / "own.jsonl"
    path.write_text('{"problem": "1+1=", "answer": "2"}\n{"problem": "2+2=", "answer": "4"}\n', encoding="utf-8")
    return path


def test_other_verification_settings_judge_again_without_generating(trained, finished, evaluated, engine_calls):
    boxed = evaluate(trained, evaluated, "verification.methods=[boxed]")
    assert engine_calls == []
    assert finished[1]["benchmarks"][0]["avg@4"]["mean"] > 0
    assert boxed["benchmarks"][0]["avg@4"]["mean"] == 0
    assert boxed["benchmarks"][0]["unparsed"] == 1
    assert ask(evaluated, "SELECT count(*) FROM evaluations") == [(52,)]


def test_tables_show_the_latest_benchmark_run(trained, tmp_path, engine_calls):
    for limit in (4, 8):
        evaluate(trained, tmp_path / "e", f"limit={limit}")
        assert ask(tmp_path / "e", "SELECT count(DISTINCT prompt_id), count(*) FROM evaluations") == [
            (limit, 4 * limit)
        ]
    assert sum(engine_calls) == 48
    evaluate(trained, tmp_path / "e", "limit=4")
    assert sum(engine_calls) == 48
    assert ask(tmp_path / "e", "SELECT count(*) FROM trajectories") == [(16,)]


def test_tables_never_show_two_temperatures_of_a_policy(trained, evaluated, tmp_path):
    own = f"benchmarks=[{{path: '{own_problems(tmp_path)}'}}]"
    evaluate(trained, evaluated, own)
    query = "SELECT problem_set, count(*) FROM evaluations GROUP BY ALL ORDER BY ALL"
    assert ask(evaluated, query) == [("1-digit sums", 52), ("own", 8)]
    evaluate(trained, evaluated, own, "temperature=0.5")
    assert ask(evaluated, query) == [("own", 8)]
    assert ask(evaluated, "SELECT DISTINCT temperature FROM trajectories") == [(0.5,)]


def test_an_evaluation_that_has_only_started_hides_nothing(trained, evaluated, monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformersEngine, "generate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, evaluated, "temperature=2")
    assert ask(evaluated, "SELECT count(*) FROM evaluations") == [(52,)]


def test_a_prompt_that_is_tokenized_differently_is_sampled_again(model, tmp_path, engine_calls):
    policy = tmp_path / "runs" / "policy"
    run(policy, small_config(rounds=1, model={"path": str(model)}))
    evaluate(policy, tmp_path / "e")
    asked = sum(engine_calls)
    tokenizer = load_tokenizer(model)
    before = tokenizer._tokenizer.to_str()
    try:
        tokenizer._tokenizer.normalizer = Replace("=", "==")
        tokenizer.save_pretrained(model)
        evaluate(policy, tmp_path / "e")
    finally:
        (model / "tokenizer.json").write_text(before, encoding="utf-8")
    assert sum(engine_calls) == asked + 52


def test_a_run_is_evaluated_with_its_own_protocol(tmp_path):
    files = {}
    for name in ("a", "b"):
        files[name] = tmp_path / f"{name}.jsonl"
        rows = [f'{{"problem": "{n}+{n}=", "answer": "{2 * n}"}}' for n in range(1, 9)]
        files[name].write_text("\n".join(rows), encoding="utf-8")
    held_out = [{"path": str(path), "limit": 3} for path in files.values()]
    config = small_config(rounds=1, seed=5, problems__held_out=held_out, problems__contaminated="keep")
    run(tmp_path / "runs/r", config)
    prepared = prepare_evaluation(str(tmp_path / "runs/r"), None, [], None, tmp_path / "e")
    source, protocol, directory = prepared.source, prepared.protocol, prepared.directory
    assert (protocol.seed, protocol.max_tokens, protocol.verification) == (5, 4, config.verification)
    with open_evaluation_context(directory, source, protocol) as context:
        list(run_benchmarks(context))
        find_results(directory, source, protocol, context.benchmarks)
    query = "SELECT DISTINCT problem_set, prompt_id, problem FROM evaluations ORDER BY ALL"
    assert len(ask(tmp_path / "e", query)) == 6
    assert ask(tmp_path / "e", query) == ask(tmp_path / "runs/r", query)


def test_majorities_are_left_out_where_a_function_judges(trained, tmp_path, monkeypatch):
    (tmp_path / "grading.py").write_text(
        "def score(problem, gold, response):\n    return response == gold\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    results = evaluate(trained, tmp_path / "e", "reward={function: 'grading:score'}")
    assert 0 < results["benchmarks"][0]["avg@4"]["mean"] < 1
    assert "maj@4" not in results["average"]
    assert "maj@4" not in results_rows(results)[0]


def test_an_evaluation_and_a_run_never_share_a_directory(trained, evaluated):
    with pytest.raises(InputError, match="contains a run; give another --out"):
        prepare_evaluation(str(trained), None, [], None, trained)
    with pytest.raises(InputError, match="contains an evaluation; choose another --run-dir"):
        run(evaluated, small_config())


def test_two_models_with_the_same_name_are_distinguished(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(model, None, SUMS, "limit=1")
    other = tmp_path / "other" / model.name
    shutil.copytree(model, other)
    with pytest.raises(InputError, match=f"contains the evaluation of {model}; give another --out"):
        prepare_evaluation(str(other), None, [*ASKED, SUMS], None, None)


def test_responses_that_cannot_be_judged_stop_an_evaluation(trained, tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text(
        "def score(problem, gold, response):\n    raise OSError('the judge is down')\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunStopped, match="benchmark run 1-digit sums: 52 of 52 responses could not be judged"):
        evaluate(trained, tmp_path / "e", "reward={function: 'failing:score'}")


def test_a_model_and_the_run_that_it_comes_from_answer_alike(finished, model, tmp_path):
    evaluate(model, tmp_path / "model", SUMS)
    query = "SELECT prompt_id, sample, response, verdict FROM evaluations ORDER BY ALL"
    paths = (finished[0], tmp_path / "model")
    assert ask(paths[0], query) == ask(paths[1], query)
    policies = [ask(path, "SELECT DISTINCT policy, round FROM evaluations") for path in paths]
    assert policies[0][0][1] == 3
    assert policies[1][0][1] == 0


def test_problems_are_drawn_by_the_seed_alone(model, tmp_path):
    def asked(name: str, *overrides: str) -> list[tuple]:
        evaluate(model, tmp_path / name, SUMS, "samples=1", *overrides)
        return ask(tmp_path / name, "SELECT prompt_id FROM evaluations ORDER BY ALL")

    first = asked("a", "limit=4")
    assert len(first) == 4
    assert asked("b", "limit=4") == first
    assert asked("c", "limit=4", "seed=1") != first
    assert set(first) < set(asked("d"))


def test_the_table_fits_a_terminal(finished):
    _, results = finished
    names, rows = results_rows(results)
    assert names[2] == "avg@4"
    assert max(map(len, results_markdown(results).split("\n")[2:])) <= 80
    assert rows[0][:2] == ["1-digit sums", "13"]
    assert float(rows[0][2]) == pytest.approx(100 * results["benchmarks"][0]["avg@4"]["mean"], abs=0.05)


def test_a_second_process_is_locked_out(trained, tmp_path):
    with EvaluationDirectory(tmp_path / "e").lock(), pytest.raises(InputError, match="is running it"):
        evaluate(trained, tmp_path / "e")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["max_tokens=255"], "model's context of 256; set max_tokens=252 or less"),
        (["prompt={chat: true}"], "prompt.chat: its tokenizer has no chat template"),
        (["stop=[ab]"], "is 2 tokens of this model"),
        (["benchmarks=[]"], "benchmarks"),
        (["sample=3"], "did you mean 'samples'"),
        ([SUMS.replace("}}]", "}}, {arithmetic: {digits: 1}}]")], "two sets are named 1-digit sums"),
        (["temperature=0"], "temperature"),
    ],
)
def test_what_cannot_work_is_refused_without_side_effects(trained, tmp_path, overrides, words):
    with pytest.raises(InputError) as refused:
        prepare_evaluation(str(trained), None, overrides, None, tmp_path / "e")
    assert words in str(refused.value)
    assert not (tmp_path / "e").exists()


def test_invalid_models_are_refused(trained, model, tmp_path):
    for source, round, words in (
        (tmp_path, None, "holds neither a run"),
        (model, 3, "has no rounds"),
        (trained, 4, "policies of rounds 0 to 3"),
        (model, None, "no benchmarks given; use --benchmarks or --preset"),
        (tmp_path / "nowhere" / "at" / "all", None, "is neither a directory nor a model on the hub"),
    ):
        with pytest.raises(InputError, match=words):
            prepare_evaluation(str(source), None, [], round, tmp_path / "e")


def test_a_lost_shard_is_generated_again(trained, evaluated):
    shard = evaluated / "rollouts/sitting=00001/shard-001.parquet"
    before = file_digest(shard)
    shard.unlink()
    evaluate(trained, evaluated)
    assert file_digest(shard) == before


def test_results_are_json(finished):
    _, results = finished
    assert json.loads(json.dumps(results)) == results
    assert time.time() > results["benchmarks"][0]["generation_seconds"] > 0


def test_a_run_with_two_held_out_sets_weights_them_equally(tmp_path):
    held_out = [
        {"arithmetic": {"digits": 1, "operators": "+", "split": "held_out"}},
        {"arithmetic": {"digits": 1, "operators": "-", "split": "held_out"}, "limit": 3},
    ]
    summary = run(tmp_path / "two", small_config(rounds=1, problems__held_out=held_out))
    directory = RunDirectory(tmp_path / "two")
    info = directory.manifest("evaluation", 1).info
    query = "SELECT problem_set, avg(correct::INT) FROM evaluations WHERE round = 1 GROUP BY ALL"
    by_set = dict(ask(directory.path, query))
    assert set(by_set) == {"1-digit sums", "1-digit differences"}
    assert info["accuracy_by_set"] == pytest.approx(by_set)
    assert by_set["1-digit sums"] != by_set["1-digit differences"]
    assert summary["final_accuracy"] == pytest.approx(sum(by_set.values()) / 2)
    assert ask(directory.path, "SELECT held_out_accuracy FROM rounds") == [
        (pytest.approx(summary["final_accuracy"]),)
    ]
    rows = sql_views(directory.path, directory.manifests()).sql(HELD_OUT).to_arrow_table().to_pylist()
    assert rows[1]["accuracy"] == pytest.approx(summary["final_accuracy"])
    assert rows[1]["problems"] == 16
    (gain,) = sql_views(directory.path, directory.manifests()).sql(GAIN).to_arrow_table().to_pylist()
    assert gain["gain"] == pytest.approx(summary["final_accuracy"] - summary["initial_accuracy"])
