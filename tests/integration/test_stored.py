"""Imported responses and offline training: real models, Parquet, DuckDB and verifier."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from reval.flows.importing import import_file
from reval.flows.preparation import prepare
from reval.flows.rounds import train_rounds
from reval_core.atomic_files import read_json
from reval_core.config import Config, StoredRollouts
from reval_core.errors import CorruptData, InputError, RunStopped
from reval_core.model.loading import load_model, policy_digest, tokenizer_of
from reval_core.pipeline.run_context import Policy, open_run_context
from reval_core.planning.forecast import forecast
from reval_core.problems.response_files import read_responses
from reval_core.replay_buffer.imported import tokenise
from reval_core.replay_buffer.index import sql_views
from reval_core.replay_buffer.offline import stored_run
from reval_core.replay_buffer.trajectories import response_table
from reval_core.report import write_report
from reval_core.stages.consistency import score_trajectories
from reval_core.stages.reference_reset import live_trajectories
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMA_VERSION
from tests.models import save_byte_level_model
from tests.runs import run, small_config

ROOT = Path(__file__).parents[2]
JUDGED = "trajectories JOIN verdicts USING (trajectory_id)"
REAL = ROOT.parent / "shared/data/stored_responses.parquet"


def offline_config(source: Path, **changes: Any) -> Config:
    """The small settings, training offline on a stored run."""
    rollouts = {"source": "stored", "run": str(source), "batch": 32}
    settings = {"replay": {"capacity": 400, "first": "buffer"}, "learner__updates": 4, "reward__kind": "signed"}
    settings |= changes
    return small_config(rollouts=rollouts, **settings)


def written(path: Path, config: Config) -> Path:
    """A config as a file."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return path


def responses(path: Path, count: int = 300) -> Path:
    """One-digit sums with correct, wrong and longer answers, and every tenth with a reward in place of the gold."""
    lines = []
    for number in range(count):
        a, b = number % 10, number // 10 % 10
        answer = str(a + b) if number % 2 else str(a + b + 1)
        row = {"problem": f"{a}+{b}=", "completion": answer, "gold": str(a + b)}
        if number % 10 == 3:
            row = {"problem": f"{a}+{b}=", "completion": answer, "reward": 0.25}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def import_small(file: Path, directory: Path, config: Path) -> None:
    import_file(file, config, [], directory, ["response=completion"], as_json=False)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported run that tests may read."""
    home = tmp_path_factory.mktemp("imported")
    config = written(home / "offline.yaml", offline_config(home / "runs/stored"))
    import_small(responses(home / "sums.jsonl"), home / "runs/stored", config)
    return home / "runs/stored"


@pytest.fixture(scope="module")
def finished(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the imported one, with prioritised sampling and a reset, that tests may read."""
    path = tmp_path_factory.mktemp("finished") / "runs/offline"
    run(path, finished_config(imported))
    return path


def finished_config(imported: Path) -> Config:
    return offline_config(imported, rounds=6, learner__lr=3e-3, replay__sampling="prioritised")


def ask(path: Path, query: str) -> list[tuple[Any, ...]]:
    return sql_views(path, RunDirectory(path).manifests()).sql(query).fetchall()


def test_an_import_has_a_verdict_for_every_response(imported):
    counts = dict(ask(imported, "SELECT verdict, count(*) FROM verdicts GROUP BY verdict"))
    assert counts == {"correct": 120, "wrong": 150, "given": 30}
    assert read_json(imported / "summary.json")["verdicts"] == counts
    given = f"SELECT DISTINCT correct, reward, given_reward FROM {JUDGED} WHERE verdict = 'given'"
    assert ask(imported, given) == [(None, 0.25, 0.25)]
    unknown = "SELECT DISTINCT policy, seed, temperature, engine_logprobs FROM trajectories"
    assert ask(imported, unknown) == [("unknown", None, None, None)]
    assert ask(imported, "SELECT DISTINCT problem_set, gold_mode FROM trajectories") == [("sums", "all")]


def test_an_import_is_scored_under_the_initial_policy_which_is_the_reference(imported):
    scores = "SELECT count(*), max(abs(delta + v.reward / 0.1)), max(abs(log_ratio)), count(engine_gap) FROM scores"
    count, error, ratio, gaps = ask(imported, f"{scores} JOIN verdicts v USING (trajectory_id)")[0]
    assert (count, ratio, gaps) == (300, 0.0, 0), "no engine is known to compare with"
    assert error < 1e-5


def test_the_gold_mode_of_an_import_decides_what_its_golds_require(tmp_path):
    (tmp_path / "lists.jsonl").write_text('{"problem": "1+2=", "completion": "7", "gold": "3, 7"}')
    for mode, verdict in (("all", "wrong"), ("any", "correct")):
        path = tmp_path / "runs" / mode
        config = offline_config(path)
        config = config.model_copy(update={"rollouts": config.rollouts.model_copy(update={"gold_mode": mode})})
        import_small(tmp_path / "lists.jsonl", path, written(tmp_path / "offline.yaml", config))
        found = ask(path, f"SELECT problem_set, gold_mode, verdict FROM {JUDGED}")
        assert found == [("lists", mode, verdict)]


def test_the_same_import_again_does_nothing_and_another_file_is_refused(imported, tmp_path, capsys):
    copy = tmp_path / "runs/stored"
    shutil.copytree(imported, copy)
    config = written(tmp_path / "offline.yaml", offline_config(imported))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.parquet")}
    import_small(imported.parents[1] / "sums.jsonl", copy, config)
    out = capsys.readouterr().out
    assert "300 trajectories" in out
    assert "(already imported)" in out
    assert out.split()[-9:] == ["wrong", "150", "50.0%", "correct", "120", "40.0%", "given", "30", "10.0%"]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.parquet")} == before
    other = responses(tmp_path / "other.jsonl", count=20)
    with pytest.raises(InputError, match=r"contains the responses of sums\.jsonl, whose content differs from"):
        import_small(other, copy, config)


def test_empty_and_cut_responses_are_counted_in_the_summary_and_the_manifest(tmp_path, capsys):
    config = written(tmp_path / "offline.yaml", offline_config(tmp_path / "runs/stored"))
    rows = [("1+1=", "2</s>3</s>"), ("1+2=", "3</s>"), ("1+3=", ""), ("1+4=", "5555555")]
    (tmp_path / "some.csv").write_text(
        "problem,response,gold\n" + "".join(f"{problem},{text},{problem[2]}\n" for problem, text in rows)
    )
    import_file(tmp_path / "some.csv", config, ["rollouts.max_tokens=4"], tmp_path / "run", [], as_json=False)
    shown = capsys.readouterr().out
    assert "1 responses were left out: they are empty" in shown
    assert "1 responses were cut at an end-of-text token: more text followed it" in shown
    summary = read_json(RunDirectory(tmp_path / "run").summary)
    manifest = RunDirectory(tmp_path / "run").manifest("rollouts", 0)
    for counts in (summary, manifest.info):
        assert {name: counts[name] for name in ("too_long", "empty", "cut")} == {
            "too_long": 1,
            "empty": 1,
            "cut": 1,
        }
    assert ask(tmp_path / "run", "SELECT response, len(response_tokens) FROM trajectories") == [("2", 2), ("3", 2)]


CASES = ROOT.parent / "shared/cases/problems"


@pytest.mark.skipif(not CASES.exists(), reason="the shared cases are missing")
@pytest.mark.parametrize(
    ("name", "taken", "empty", "cut"),
    [
        ("eos_inside.jsonl", 2, 0, 1),
        ("empty_response.jsonl", 3, 1, 0),
        ("upper.JSONL", 4, 0, 0),
        ("floatgold.jsonl", 1, 0, 0),
        ("csvresp.csv", 1, 0, 0),
    ],
)
def test_the_shared_responses_become_tokens(name, taken, empty, cut):
    letters = {"tiny": {"characters": "0123456789+=.so \\bxed{}"}}
    config = small_config(model=letters, rollouts__max_tokens=60)
    found = read_responses(CASES / name, {}, "all")
    tokenised = tokenise(found, config, tokenizer_of(config.model))
    assert (len(tokenised.responses), tokenised.empty, tokenised.cut) == (taken, empty, cut)


def test_a_training_run_refuses_an_import(finished, imported, tmp_path):
    config = written(tmp_path / "offline.yaml", offline_config(imported))
    with pytest.raises(InputError, match="contains a training run; give another --run-dir"):
        import_small(imported.parents[1] / "sums.jsonl", finished, config)


def test_an_interrupted_import_resumes(imported, tmp_path, monkeypatch):
    file, directory = imported.parents[1] / "sums.jsonl", tmp_path / "runs/stored"
    config = written(tmp_path / "offline.yaml", offline_config(imported))
    module = sys.modules["reval_core.stages.importing"]  # in the package, the name is the stage
    monkeypatch.setattr(module, "SHARD_ROWS", 100)
    made: list[int] = []

    def breaking(rows: Any, tokenizer: Any, *, shard: int, **given: Any) -> Any:
        if shard == 2 and made == [0, 1]:
            made.append(-1)
            raise KeyboardInterrupt
        made.append(shard)
        return response_table(rows, tokenizer, shard=shard, **given)

    monkeypatch.setattr(module, "response_table", breaking)
    with pytest.raises(KeyboardInterrupt):
        import_small(file, directory, config)
    assert RunDirectory(directory).manifest("rollouts", 0) is None
    import_small(file, directory, config)
    assert made == [0, 1, -1, 2], "a published shard is not written again"
    query = f"SELECT trajectory_id, problem, response, verdict, reward FROM {JUDGED}"
    assert sorted(ask(directory, query)) == sorted(ask(imported, query))


def test_learning_lowers_mean_delta_over_all_that_is_stored(finished):
    curve = 'SELECT round, avg(abs(delta)), count(*) FROM residuals WHERE "update" IS NULL GROUP BY 1 ORDER BY 1'
    rounds, means, counts = zip(*ask(finished, curve), strict=True)
    assert rounds == (0, 2, 4, 6)
    assert set(counts) == {300}
    summary = run(finished, finished_config(Path(read_config(finished)["rollouts"]["run"])))
    assert (summary["initial_delta_abs"], summary["final_delta_abs"]) == pytest.approx((means[0], means[-1]))
    assert means[-1] < 0.6 * means[0]
    recorded = ask(finished, "SELECT round, stored_delta_abs FROM rounds WHERE stored_delta_abs IS NOT NULL")
    assert recorded == [(number, pytest.approx(mean)) for number, mean in list(zip(rounds, means, strict=True))[1:]]


def read_config(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((path / "config.yaml").read_text())
    return found


def test_the_measured_residuals_are_those_of_the_final_policy(finished, imported):
    """Independently: all stored trajectories scored again under the last policy."""
    directory = RunDirectory(finished)
    with open_run_context(directory, finished_config(imported)) as context:
        policy, start = (Policy.of(directory.manifest(*stage)) for stage in (("learning", 6), ("warm_start", 0)))
        context.learner_at(policy)
        live, rows = live_trajectories(context)
        expected = score_trajectories(context, 6, rows, live.column("reward"), policy, start).column("delta")
    found = ask(finished, 'SELECT delta FROM residuals WHERE round = 6 AND "update" IS NULL ORDER BY trajectory_id')
    assert [delta for (delta,) in found] == pytest.approx(expected.to_pylist(), abs=1e-3)


def test_nothing_is_generated_and_what_is_not_known_is_null(finished):
    rows = ask(finished, "SELECT trajectories, tokens, accuracy, delta_abs, kl, engine_gap FROM rounds")
    assert set(rows) == {(0, 0, None, None, None, None)}
    assert ask(finished, "SELECT count(*) FROM evaluations") == [(0,)]
    assert ask(finished, "SELECT DISTINCT source, staleness = round FROM draws") == [("buffer", True)]
    assert ask(finished, "SELECT count(*) FROM rounds WHERE drawn_delta_abs > 0 AND grad_norm > 0") == [(6,)]


def test_no_engine_is_created(imported, tmp_path, monkeypatch):
    def unwanted(*arguments: Any) -> None:
        raise AssertionError("an engine was made")

    monkeypatch.setattr("reval_core.pipeline.run_context.make_engine", unwanted)
    run(tmp_path / "offline", offline_config(imported, rounds=1))


def test_an_interrupted_run_resumes_to_the_same_policy_without_the_stored_run(finished, imported, tmp_path):
    source, path = tmp_path / "stored", tmp_path / "runs/offline"
    shutil.copytree(imported, source)
    config = offline_config(source, rounds=6, learner__lr=3e-3, replay__sampling="prioritised")
    run(path, config, until=3)
    shutil.rmtree(source)
    summary = run(path, config)
    assert summary["policy_digest"] == read_digest(finished)
    assert summary["policy_digest"] != policy_digest(load_model(RunDirectory(path).checkpoint(0)))


def read_digest(path: Path) -> str:
    digest: str = RunDirectory(path).manifest("checkpoint", 6).info["content"]
    return digest


def test_a_stored_file_that_has_changed_is_refused(imported, tmp_path):
    source = tmp_path / "stored"
    shutil.copytree(imported, source)
    config, directory = offline_config(source), RunDirectory(tmp_path / "runs/offline")
    (source / "facts/round=00000/verdicts.parquet").unlink()
    with (
        open_run_context(directory, config) as context,
        pytest.raises(CorruptData, match=r"verdicts\.parquet: is missing or has changed"),
    ):
        next(train_rounds(context))


def test_a_run_trains_offline_on_a_run_with_an_engine(tmp_path):
    """From all its rounds, with the recorded policies."""
    source, path = tmp_path / "source", tmp_path / "runs/offline"
    run(source, small_config(rounds=2, reward__kind="signed"))
    summary = run(path, offline_config(source, rounds=3, learner__lr=3e-3))
    assert summary["trajectories"] == 128
    assert summary["final_delta_abs"] < summary["initial_delta_abs"]
    kept = f"SELECT problem, response, policy, seed, verdict, reward FROM {JUDGED}"
    assert sorted(ask(path, kept)) == sorted(ask(source, kept))
    policies = (
        "SELECT count(DISTINCT t.policy), count(engine_gap) FROM trajectories t JOIN scores USING (trajectory_id)"
    )
    assert ask(path, policies) == [(2, 64)], (
        "round 1 was written by the initial policy itself: its engine can be compared"
    )


def test_an_objective_that_needs_unknown_probabilities_is_stopped(imported, tmp_path):
    objective = {"kind": "custom", "function": "tests.models:engine_objective"}
    with pytest.raises(RunStopped, match="the loss is not finite for trajectories"):
        run(tmp_path / "offline", offline_config(imported, objective=objective))


def test_a_reference_reset_scores_the_stored_trajectories_again(imported, tmp_path):
    path = tmp_path / "offline"
    run(path, offline_config(imported, rounds=2, reference__reset_every=1))
    rows = ask(path, "SELECT round, count(*), count(DISTINCT reference), count(engine_gap) FROM scores GROUP BY 1")
    assert sorted(rows) == [(0, 300, 1, 0), (1, 300, 1, 0), (2, 300, 1, 0)]


def test_reports_of_an_import_and_of_a_run_on_it(imported, finished):
    page = write_report(RunDirectory(finished)).read_text()
    assert "Fit to the stored trajectories" in page
    assert "over the 300 stored trajectories fell from" in page
    assert "Example responses" in page
    assert "No response has been scored yet" not in page
    assert "Imported responses" in write_report(RunDirectory(imported)).read_text()


def test_what_would_stop_a_run_is_refused_before_it_starts(imported, tmp_path, monkeypatch):
    plain = offline_config(imported)

    def complaint(config: Config, source: Path = imported) -> str:
        path = written(tmp_path / "offline.yaml", config)
        with pytest.raises(InputError) as error:
            prepare(path, [], tmp_path / "run")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    few = complaint(offline_config(imported, replay__capacity=299))
    assert few.endswith(f"of {imported}, and the buffer must hold all of them; set replay.capacity: 300")
    other = complaint(offline_config(imported, model__tiny__characters="9876543210+-*= "))
    assert "its tokens are those of model.tiny, but the tokenizer of model.tiny differs" in other
    assert "problems.prompt: its trajectories" in complaint(
        offline_config(imported, problems__prompt={"user": "Q: {problem}"})
    )
    assert "reward: its trajectories were made with" in complaint(offline_config(imported, reward__kind="binary"))
    assert "is not a run directory" in complaint(offline_config(tmp_path / "nowhere"))
    with monkeypatch.context() as patched:
        patched.setattr("reval_core.replay_buffer.offline.SCHEMA_VERSION", "99")
        assert f"tables have schema version {SCHEMA_VERSION}, but this reval reads version 99" in complaint(plain)
    RunDirectory(tmp_path / "empty").open(offline_config(imported))
    assert "contains no verified trajectories yet" in complaint(offline_config(tmp_path / "empty"))
    copied = Config.model_validate(read_config(imported))
    assert "import is what reval import writes into its own run directory" in complaint(copied)


def test_the_forecast_covers_what_a_run_takes(imported, finished):
    config = finished_config(imported)
    assert isinstance(config.rollouts, StoredRollouts)
    taken = sum(file.stat().st_size for file in finished.rglob("*") if file.is_file())
    sizes = forecast(config, stored_run(RunDirectory(finished), config.rollouts))
    assert sizes.trajectories == 300
    assert taken < sizes.disk_bytes < 100 * taken


@pytest.mark.skipif(not REAL.exists(), reason="the shared data is missing")
def test_real_responses_are_imported_and_trained_on(tmp_path, capsys):
    model = tmp_path / "model"
    save_byte_level_model(model)
    overrides = [
        f"model.path={model}",
        "threads=1",
        "rollouts.max_tokens=200",
        f"rollouts.run={tmp_path}/runs/stored",
        "rounds=3",
        "learner.lr=1e-3",
    ]
    config = ROOT / "configs/offline.yaml"
    import_file(REAL, config, overrides, tmp_path / "runs/stored", ["reward=label"], as_json=True)
    summary = json.loads(capsys.readouterr().out)
    assert summary["trajectories"] + summary["too_long"] == 1000
    assert sum(summary["verdicts"].values()) == summary["trajectories"] > 50
    agreement = f"SELECT avg((reward = 2 * given_reward - 1)::INT) FROM {JUDGED}"
    assert ask(tmp_path / "runs/stored", agreement)[0][0] > 0.95, "verdicts agree with the labels in the file"
    prepared = prepare(config, overrides, tmp_path / "runs/offline")
    settings, directory = prepared.config, prepared.directory
    summary = run(directory.path, settings)
    assert summary["final_delta_abs"] < 0.9 * summary["initial_delta_abs"]
