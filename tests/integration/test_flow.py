"""The flow under a real Prefect server, with MLflow on SQLite."""

from __future__ import annotations

import base64
import copy
import json
import lzma
import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

from mlflow import MlflowClient
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.flows import load_flow_from_entrypoint
from prefect.results import ResultRecord
from prefect.testing.utilities import prefect_test_harness

from reval.flows import deployed
from reval.flows.cli import cli
from reval.flows.deployed import limit_name, turn
from reval.flows.evaluate import evaluate
from reval.flows.train import train
from reval.tasks.tracking import open_client, tracking_uri
from reval_core.atomic_files import read_json
from reval_core.config import Tracking
from reval_core.engines.transformers import TransformersEngine
from reval_core.engines.vllm import EngineDied
from reval_core.errors import InputError, RunStopped
from reval_core.replay_buffer.index import sql_views
from reval_core.storage.run_directory import RunDirectory
from tests.conftest import SMALL
from tests.models import save_byte_level_model
from tests.runs import run, small_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of the same settings without Prefect, for reading, and its summary."""
    path = tmp_path_factory.mktemp("plain") / "small"
    summary = run(path, small_config())
    assert summary is not None
    return path, summary


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    return path


def names_on_the_page(flow_run_id: Any, expected: set[str]) -> set[str]:
    """The names of a flow run's tasks, once the server has all expected ones: it receives them as events."""
    deadline = time.monotonic() + 300
    while True:
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])), limit=200
            )
        names = {one.name for one in found}
        if names >= expected or time.monotonic() > deadline:
            return names
        time.sleep(0.2)


def states(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The final state of each task run as seen by this process; the server's arrive late or out of order."""
    messages = [record.getMessage() for record in caplog.records if record.name == "prefect.task_runs"]
    return [message.removeprefix("Finished in state ") for message in messages if "Finished" in message]


def latest_flow_run() -> Any:
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def test_the_flow_equals_the_plain_stages_and_a_second_start_skips_everything(config, plain, tmp_path, caplog):
    path = tmp_path / " my 'runs' %41%20; #1 & é日" / '-*fl"ow [a-b] {x} $HOME'
    first = train(str(config), run_dir=str(path))
    assert set(states(caplog)) == {"Completed()"}
    assert first["policy_digest"] == plain[1]["policy_digest"]
    assert (path / "report.html").exists()
    assert read_json(path / "summary.json") == first

    expected = {"warm start", *(f"rollouts of round {round}" for round in (1, 2, 3))}
    expected |= {"verification of round 1", "learning of round 2", "evaluation of round 2"}
    assert names_on_the_page(latest_flow_run().id, expected) >= expected

    facts = {file: file.stat().st_mtime_ns for file in path.glob("facts/*/*.parquet")}
    caplog.clear()
    again = train(str(config), run_dir=str(path))
    assert states(caplog) == [], "a finished stage has a task run"
    assert {file: file.stat().st_mtime_ns for file in facts} == facts
    assert again["policy_digest"] == first["policy_digest"]
    assert not (path / "cache").exists(), "Prefect stored results"

    _check_mlflow(path, rounds=3)


def _check_mlflow(path: Path, rounds: int) -> None:
    """Two attempts are one MLflow run, and every round is in it once."""
    client = open_client(tracking_uri(RunDirectory(path), Tracking()))
    assert {one.name for one in path.parents[1].iterdir()} == {"small.yaml", path.parent.name}
    (experiment,) = [one for one in client.search_experiments() if one.name == "reval"]
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    history = client.get_metric_history(logged.info.run_id, "accuracy")
    assert [metric.step for metric in history] == list(range(1, rounds + 1))
    held_out = client.get_metric_history(logged.info.run_id, "held_out_accuracy")
    assert [metric.step for metric in held_out] == [0, 2, 3]
    expected = (
        sql_views(path, RunDirectory(path).manifests()).sql("SELECT accuracy FROM rounds ORDER BY round").fetchall()
    )
    assert [(metric.value,) for metric in history] == expected
    by_age = client.get_metric_history(logged.info.run_id, "delta_abs_by_age/1")
    aged = "SELECT delta_abs FROM off_policy WHERE age = 1 ORDER BY round"
    assert [(one.value,) for one in by_age] == sql_views(path, RunDirectory(path).manifests()).sql(aged).fetchall()
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == {"config.yaml", "summary.json"}
    assert logged.data.params["learner.lr"] == "0.001"


def test_a_resume_creates_task_runs_for_the_remaining_round_only(config, tmp_path):
    path = tmp_path / "runs" / "resumed"
    run(path, small_config(), until=2)
    train(str(config), run_dir=str(path))
    resumed = latest_flow_run()
    assert resumed.name == str(path), "a flow run is named by its run directory"
    started = {"rollouts", "verification", "consistency", "sampling", "learning"}
    ended = {"evaluation", "checkpoint", "recording"}
    expected = {f"{stage} of round 3" for stage in started | ended}
    assert names_on_the_page(resumed.id, expected) == expected


def test_a_flow_run_is_retried_after_an_unknown_error_only(config, plain, tmp_path, monkeypatch):
    path = shutil.copytree(plain[0], tmp_path / "runs" / "small")
    tried = []

    def broken(directory):
        tried.append(directory)
        if len(tried) == 1:
            raise OSError("stale file handle")
        raise RunStopped("the report cannot be written")

    monkeypatch.setattr("reval.flows.train.write_report", broken)
    with pytest.raises(RunStopped):
        train.with_options(retry_delay_seconds=0)(str(config), run_dir=str(path))
    assert len(tried) == 2
    assert latest_flow_run().run_count == 2


def test_a_turn_that_is_left_by_an_error_is_free_again(tmp_path, monkeypatch):
    monkeypatch.setattr(deployed, "deployment", SimpleNamespace(id="a deployment"))
    path = tmp_path / "a run, at 100% / {x}"
    taken = []

    @flow
    def failing():
        with turn(path):
            taken.append(slots())
            raise RunStopped("the run stopped")

    def slots():
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(limit_name(path))
            return limit.active_slots, limit.limit

    for _ in range(2):
        with pytest.raises(RunStopped):
            failing()
        assert slots() == (0, 1)
    assert taken == [(1, 1), (1, 1)]
    assert limit_name(path) == limit_name(path.parent / "." / path.name) != limit_name(tmp_path)


def test_a_flow_of_offline_training_equals_the_plain_stages(tmp_path, caplog):
    run(tmp_path / "source", small_config(rounds=1))
    stored = {"source": "stored", "run": str(tmp_path / "source"), "batch": 16}
    settings = small_config(rounds=2, rollouts=stored, replay__first="buffer")
    config, path = tmp_path / "offline.yaml", tmp_path / "runs" / "offline"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    summary = train(str(config), run_dir=str(path))
    assert summary["policy_digest"] == run(tmp_path / "plain", settings)["policy_digest"]
    assert summary["initial_delta_abs"] > 0
    assert (path / "report.html").exists()
    caplog.clear()
    train(str(config), run_dir=str(path))
    assert states(caplog) == [], "a finished stage has a task run"

    client = MlflowClient(f"sqlite:///{path.parent / 'mlflow.db'}")
    (logged,) = client.search_runs([client.get_experiment_by_name("reval").experiment_id])
    history = client.get_metric_history(logged.info.run_id, "stored_delta_abs")
    assert [metric.step for metric in history] == [0, 2]
    assert len(client.get_metric_history(logged.info.run_id, "drawn_delta_abs")) == 2
    assert client.get_metric_history(logged.info.run_id, "accuracy") == []


class Touches:
    """Creates a file when a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def hostile_records(sign: Path) -> Iterator[bytes]:
    """What an attacker could leave in place of Prefect's stored results: each would create `sign`."""
    pickled = base64.b64encode(pickle.dumps(Touches(sign))).decode()
    squeezed = base64.b64encode(lzma.compress(pickled.encode())).decode()
    orders = json.dumps({"__class__": "os.mkdir", "data": str(sign)})
    called = json.dumps({"__class__": "pathlib.Path", "data": str(sign)})
    yield pickle.dumps(Touches(sign))
    yield base64.b64encode(pickle.dumps(Touches(sign)))
    for serializer, result in (
        ({"type": "pickle"}, pickled),
        ({"type": "pickle", "picklelib": "cloudpickle"}, pickled),
        ({"type": "compressed/pickle"}, squeezed),
        ({"type": "compressed", "serializer": {"type": "pickle"}}, squeezed),
        ({"type": "json"}, orders),
        ({"type": "json", "object_decoder": "os.mkdir"}, called),
        ({"type": "json", "jsonlib": "pickle"}, pickled),
        ({"type": "tests.integration.test_flow.Touches"}, pickled),
        ({"type": "json"}, "[" * 10_000),
    ):
        yield json.dumps({"metadata": {"serializer": serializer}, "result": result}).encode()
        yield json.dumps({"serializer": serializer, "data": result}).encode()  # as Prefect 2 wrote it


def test_records_left_in_the_run_directory_are_never_read(config, tmp_path, caplog):
    path, sign = tmp_path / "runs" / "foreign", tmp_path / "executed"
    first = train(str(config), run_dir=str(path))
    directory = RunDirectory(path)
    records = list(hostile_records(sign))
    keys = [manifest.key for manifest in directory.manifests()]
    assert len(keys) > len(records)
    directory.cache.mkdir()
    for place, key in enumerate(keys):  # a result was stored under its stage's key
        (directory.cache / key).write_bytes(records[place % len(records)])
    ResultRecord.deserialize(records[2])  # they are valid records
    sign.rmdir()

    directory.manifest_path("recording", 3).unlink()
    caplog.clear()
    again = train(str(config), run_dir=str(path))
    assert not sign.exists(), "a record was decoded"
    assert again["policy_digest"] == first["policy_digest"]
    assert states(caplog) == ["Completed()"], "more than the missing stage was executed"
    assert sorted(file.name for file in directory.cache.iterdir()) == sorted(set(keys))


def test_an_engine_that_fails_once_is_retried_and_the_run_ends_the_same(config, plain, tmp_path, monkeypatch):
    generate, calls = TransformersEngine.generate, []

    def failing(self, requests, sampling, enough):
        calls.append(len(requests))
        if len(calls) == 4:
            raise RuntimeError("the engine broke")
        return generate(self, requests, sampling, enough)

    monkeypatch.setattr(TransformersEngine, "generate", failing)
    summary = train(str(config), run_dir=str(tmp_path / "runs" / "failing"))
    assert summary["policy_digest"] == plain[1]["policy_digest"]
    assert len(calls) > 4


@pytest.mark.parametrize(
    ("broken", "error", "title", "words"),
    [
        (
            "reval_core.learning.learner.Learner._update",
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "learning of round 1",
            r"\(CUDA out of memory\. Tried to allocate 2\.00 GiB\.\); .*, or set learner\.gradient_checkpointing",
        ),
        (  # what vLLM's process said before it ended
            "reval_core.engines.transformers.TransformersEngine.generate",
            EngineDied("vLLM's process ended (torch.OutOfMemoryError: CUDA out of memory.); see engine.log"),
            "evaluation",
            r"\(vLLM's process ended .*\); .*, or lower evaluation\.batch",
        ),
    ],
)
def test_out_of_memory_stops_the_run_with_advice_and_is_not_retried(
    broken, error, title, words, config, tmp_path, monkeypatch
):
    calls = []

    def exhausted(*_, **__):
        calls.append(1)
        raise error

    monkeypatch.setattr(broken, exhausted)
    with pytest.raises(RunStopped, match=f"^{title}: out of memory {words}"):
        train(str(config), run_dir=str(tmp_path / "runs" / "large"))
    assert len(calls) == 1


def test_metrics_that_cannot_be_delivered_do_not_stop_training_and_arrive_later(config, tmp_path, caplog):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory should be")
    path, uri = tmp_path / "runs" / "run", f"sqlite:///{blocked / 'mlflow.db'}"
    override = [f"tracking.uri={uri}"]
    summary = train(str(config), overrides=override, run_dir=str(path))
    assert summary["rounds"] == 3
    assert "MLflow cannot be reached" in caplog.text
    blocked.unlink()
    blocked.mkdir()
    train(str(config), overrides=override, run_dir=str(path))
    client = MlflowClient(uri)
    (logged,) = client.search_runs([client.get_experiment_by_name("reval").experiment_id])
    assert len(client.get_metric_history(logged.info.run_id, "accuracy")) == 3


def test_bad_input_is_refused_before_any_work(config, tmp_path):
    with pytest.raises(InputError, match=r"learner\.lr"):
        train(str(config), overrides=["learner.lr=-1"], run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_deployments_of_prefect_yaml_name_flows_that_load():
    names = []
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [one["name"] for one in deployments] == ["default", "evaluate", "reproduce", "torchrun"]
    for deployment in deployments:
        loaded = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
        names.append(loaded.name)
        assert set(deployment["parameters"]) == set(loaded.parameters.properties)
        assert (loaded.persist_result, loaded.result_serializer) == (False, "json"), "no pickles"
    assert names == ["reval-train", "reval-evaluate", "reval-reproduce", "reval-torchrun"]


def test_the_rounds_of_a_run_are_printed_beside_its_json(plain, tmp_path, capsys):
    path = shutil.copytree(plain[0], tmp_path / "runs" / "small")
    cli.main(["resume", str(path), "--json"], standalone_mode=False)
    shown = capsys.readouterr()
    assert json.loads(shown.out)["policy_digest"] == plain[1]["policy_digest"]
    assert "round 3/3" in shown.err


class Counted:
    """Counts the calls of functions, by what they load."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self._monkeypatch = monkeypatch

    def count(self, function: str, name: Callable[..., str] | None = None) -> None:
        """Count a function, given by its dotted path, under its own name or what `name` makes of its arguments."""
        module, _, last = function.rpartition(".")
        original = getattr(import_module(module), last)

        def counted(*given: Any, **named: Any) -> Any:
            self.calls[name(*given) if name else last] += 1
            return original(*given, **named)

        self._monkeypatch.setattr(function, counted)


def test_a_command_loads_and_checks_everything_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_byte_level_model(tmp_path / "model")
    for name, numbers in (("train", range(1, 17)), ("held_out", range(17, 21))):
        rows = [{"problem": f"{n}+{n}=", "answer": f"{2 * n}"} for n in numbers]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = copy.deepcopy(SMALL) | {"rounds": 1, "model": {"path": "model"}}
    settings["problems"] = {"train": {"path": "train.jsonl"}, "held_out": {"path": "held_out.jsonl"}}
    Path("own.yaml").write_text(yaml.safe_dump(settings))

    counted = Counted(monkeypatch)
    counted.count("reval_core.problems.problem_sets.read_rows", lambda path: path.name)
    counted.count("reval_core.model.loading.load_tokenizer")
    counted.count("reval_core.model.loading.check_model")
    counted.count("reval_core.problems.selection.render")
    once = dict.fromkeys(("train.jsonl", "held_out.jsonl", "load_tokenizer", "check_model", "render"), 1)
    for command in (["--dry-run"], []):
        cli.main(["train", "own.yaml", *command], standalone_mode=False)
        assert counted.calls == once, command
        counted.calls.clear()

    del once["train.jsonl"]
    sets = [
        "--benchmarks",
        "held_out.jsonl",
        "--samples",
        "1",
        "--set",
        "max_tokens=4",
        "--set",
        "prompt.chat=false",
    ]
    for command in (["--dry-run"], []):
        cli.main(["eval", "model", *sets, *command], standalone_mode=False)
        assert counted.calls == once, command
        counted.calls.clear()
    assert latest_flow_run().parameters["model"] == "model", "a flow run shows how to repeat it"


def test_an_evaluation_flow_prepares_itself_and_a_wrong_parameter_is_not_retried(plain, tmp_path):
    out = tmp_path / "evals" / "small"
    results = evaluate(str(plain[0]), overrides=["samples=1", "max_tokens=4"], out=str(out))
    assert read_json(out / "results.json") == results
    assert latest_flow_run().name == str(out)
    with pytest.raises(InputError, match="absent"):
        evaluate(str(tmp_path / "absent"))
    refused = latest_flow_run()
    assert (refused.name, refused.state_name, refused.run_count) == (str(tmp_path / "absent"), "Failed", 1)


def test_an_evaluation_prints_a_table_or_json_and_is_logged_to_mlflow(plain, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(plain[0], tmp_path / "runs" / "small")
    command = ["eval", "runs/small", "--samples", "4", "--set", "max_tokens=4", "--out", "evals/small"]
    cli.main(command, standalone_mode=False)
    shown = capsys.readouterr()
    assert "1-digit sums" in shown.out
    assert "avg@4" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "13 problems" in shown.err
    caplog.clear()
    cli.main([*command, "--json"], standalone_mode=False)
    again = capsys.readouterr()
    results = json.loads(again.out)
    assert "reused: responses and verdicts" in again.err
    assert states(caplog) == [], "a finished stage has a task run"
    assert {**results, "out": None} == {**read_json(tmp_path / "evals/small/results.json"), "out": None}
    (experiment,) = MlflowClient(f"sqlite:///{tmp_path}/evals/mlflow.db").search_experiments(
        filter_string="name = 'reval'"
    )
    (tracked,) = MlflowClient(f"sqlite:///{tmp_path}/evals/mlflow.db").search_runs([experiment.experiment_id])
    assert tracked.data.metrics["1-digit sums/avg_at_4"] == results["benchmarks"][0]["avg@4"]["mean"]
    assert tracked.data.params["samples"] == "4"
    assert {"results.json", "results.md", "evaluation.yaml"} <= {
        path.name for path in tmp_path.glob("evals/mlartifacts/**/artifacts/*")
    }
