"""Complete small runs through the plain stages: real models, real Parquet, real DuckDB, the real verifier."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from reval.flows.rounds import train_rounds
from reval.flows.upkeep import show_exported_model
from reval_core import stages
from reval_core.errors import CorruptData, InputError, RunStopped
from reval_core.learning.checkpoints import checkpoint_rounds
from reval_core.learning.checksum import weights_checksum
from reval_core.learning.learner import Learner
from reval_core.learning.replica import Replica
from reval_core.maintenance.check import check_run
from reval_core.maintenance.prune import plan
from reval_core.model.loading import load_model, policy_digest
from reval_core.model.low_precision import low_precision
from reval_core.model.noise import LEAST
from reval_core.pipeline import reconstruction
from reval_core.pipeline.run_context import Policy, open_run_context
from reval_core.replay_buffer.index import Store, rebuild_store, scalar_columns, sql_views
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import SCHEMAS
from tests.runs import first_round, run, small_config


def tables(directory: RunDirectory) -> dict[str, list[tuple]]:
    """The rows of every table of a run, without times."""
    connection = sql_views(directory.path, directory.manifests())
    clocks = {"milliseconds", "seconds", "ended_at"}
    found = {}
    for table, schema in SCHEMAS.items():
        kept = [name for name in schema.names if name not in clocks and not name.endswith(("_seconds", "_second"))]
        columns = ", ".join(f'"{name}"' for name in kept)
        found[table] = connection.sql(f'SELECT {columns} FROM "{table}" ORDER BY ALL').fetchall()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that tests may read."""
    path = tmp_path_factory.mktemp("finished") / "runs" / "small"
    run(path, small_config(reference__reset_every=2))
    return path


def test_a_run_leaves_one_row_for_every_event(finished):
    rows = {table: len(found) for table, found in tables(RunDirectory(finished)).items()}
    held_out = rows["evaluations"] // 3
    assert rows == {
        "trajectories": 3 * 64,
        "partials": 0,
        "verdicts": 3 * 64,
        "scores": 3 * 64 + 128,  # and the live buffer again, after the reset
        "draws": 3 * 2 * 64,
        "updates": 3 * 2,
        "residuals": 3 * 2 * 64,
        "evaluations": 3 * held_out,  # before round 1, after rounds 2 and 3
        "rounds": 3,
    }
    assert held_out > 0


def test_every_table_of_responses_names_its_problem_sets(finished):
    views = sql_views(finished, RunDirectory(finished).manifests())
    for table in ("trajectories", "evaluations"):
        found = views.sql(f"SELECT DISTINCT problem_set, gold_mode FROM {table}").fetchall()
        assert found == [("1-digit sums", "all")]


def test_what_is_held_out_in_several_sets_is_evaluated_in_all_and_not_trained_on(tmp_path):
    (tmp_path / "sums.jsonl").write_text('{"problem": "1 + 2 =", "answer": 3}\n{"problem": "9+9+9=", "answer": 27}')
    split = {"arithmetic": {"digits": 1, "operators": "+", "split": "held_out"}, "limit": 3}
    sets = [split, {"path": str(tmp_path / "sums.jsonl")}]
    config = small_config(rounds=1, problems__held_out=sets, problems__contaminated="drop")
    run(tmp_path / "run", config)
    views = sql_views(tmp_path / "run", RunDirectory(tmp_path / "run").manifests())
    sampled = "SELECT problem_set, count(DISTINCT prompt_id), count(*) FROM evaluations WHERE round = 0 GROUP BY 1"
    assert sorted(views.sql(sampled).fetchall()) == [("1-digit sums", 3, 6), ("sums", 2, 4)]
    with open_run_context(RunDirectory(tmp_path / "run"), config) as context:
        assert "1+2=" not in {problem.problem for problem in context.train}
        assert "2+1=" in {problem.problem for problem in context.train}


def test_plain_duckdb_opens_the_tables_of_a_run(finished):
    with duckdb.connect(RunDirectory(finished).tables, read_only=True) as views:
        assert views.execute("SELECT round FROM rounds ORDER BY round").fetchall() == [(1,), (2,), (3,)]
        assert views.execute("SELECT count(response_tokens) FROM trajectories").fetchall() == [(3 * 64,)]


def test_the_database_can_be_deleted_and_rebuilt(finished, tmp_path):
    directory = RunDirectory(finished)
    again = Store(directory.path, tmp_path / "again.duckdb", capacity=160)
    again.build(directory.manifests())
    again.close()
    names = [*SCHEMAS, "buffer"]
    for name in names:
        query = f'SELECT * FROM "{name}" ORDER BY ALL'
        with (
            duckdb.connect(directory.database, read_only=True) as one,
            duckdb.connect(tmp_path / "again.duckdb") as two,
        ):
            assert one.sql(query).fetchall() == two.sql(query).fetchall(), name


def test_the_database_has_the_scalars_of_the_tables(finished):
    directory = RunDirectory(finished)
    views = sql_views(directory.path, directory.manifests())
    with duckdb.connect(directory.database, read_only=True) as database:
        for table in SCHEMAS:
            columns = ", ".join(f'"{name}"' for name, _ in scalar_columns(table))
            query = f'SELECT {columns} FROM "{table}" ORDER BY ALL'
            assert database.sql(query).fetchall() == views.sql(query).fetchall()


def test_the_buffer_keeps_the_newest_trajectories(finished):
    with duckdb.connect(RunDirectory(finished).database, read_only=True) as database:
        live = [row[0] for row in database.sql("SELECT trajectory_id FROM buffer ORDER BY 1").fetchall()]
    assert len(live) == 160
    ids = [row[0] for row in tables(RunDirectory(finished))["trajectories"]]
    assert live == sorted(ids)[-160:]


def test_stepwise_residuals_sum_to_the_trajectory_residual(finished):
    directory = RunDirectory(finished)
    views = sql_views(directory.path, directory.manifests())
    rows = views.sql(
        "SELECT list_sum(step_deltas), delta, value_term + log_ratio - scaled_reward FROM scores"
    ).fetchall()
    steps, delta, parts = (np.array(column) for column in zip(*rows, strict=True))
    np.testing.assert_allclose(steps, delta, atol=2e-4)
    np.testing.assert_allclose(parts, delta, atol=1e-5)


def test_scores_against_the_reference_itself_are_calibrated(finished):
    """In round 1 the policy is the reference: D and the log-ratio are exactly 0, and Δ is −r/β."""
    directory = RunDirectory(finished)
    views = sql_views(directory.path, directory.manifests())
    (row,) = views.sql(
        """
        SELECT max(abs(value_term)), max(abs(log_ratio)), max(abs(delta + scaled_reward))
        FROM scores WHERE round = 1
        """
    ).fetchall()
    assert row == (0.0, 0.0, 0.0)


def test_a_reset_scores_the_live_buffer_against_the_new_reference_and_keeps_the_old_scores(finished):
    directory = RunDirectory(finished)
    views = sql_views(directory.path, directory.manifests())
    references = dict(views.sql("SELECT reference, count(*) FROM scores GROUP BY 1").fetchall())
    new = Policy.of(directory.manifest("learning", 2)).identity
    old = Policy.of(directory.manifest("warm_start", 0)).identity
    # Rounds 1 and 2 against the initial policy; the 128 then live and round 3 against that of round 2.
    assert references == {old: 128, new: 128 + 64}
    used = views.sql("SELECT DISTINCT round, reference FROM draws ORDER BY 1").fetchall()
    assert used == [(1, old), (2, old), (3, new)]


def test_the_engine_and_the_trainer_agree(finished):
    views = sql_views(finished, RunDirectory(finished).manifests())
    assert views.execute("SELECT max(engine_gap) FROM scores").fetchone()[0] < 1e-5


def test_every_problem_is_sampled_before_any_twice(finished):
    views = sql_views(finished, RunDirectory(finished).manifests())
    sampled = views.sql("SELECT round, prompt_id FROM trajectories GROUP BY ALL").fetchall()
    assert len(sampled) == 3 * 16
    assert len({prompt for _, prompt in sampled}) == 48


def test_the_checkpoint_of_the_last_round_is_the_policy_that_the_summary_names(tmp_path):
    path = tmp_path / "small"
    summary = run(path, small_config())
    assert summary is not None
    directory = RunDirectory(path)
    assert policy_digest(load_model(directory.checkpoint(3))) == summary["policy_digest"]
    assert Policy.of(directory.manifest("learning", 3)).identity == summary["policy_chain"]
    assert summary["updates"] == 6
    assert summary["trajectories"] == 192
    assert summary["engine"] == "transformers"
    assert set(summary["stage_seconds"]) >= {"warm_start", "rollouts", "verification", "consistency", "learning"}
    assert summary["wall_seconds"] > 0


@pytest.mark.parametrize("until", [0, 1, 2])
def test_an_interrupted_and_resumed_run_ends_like_an_undisturbed_one(finished, tmp_path, until):
    config, path = small_config(reference__reset_every=2), tmp_path / "broken"
    assert run(path, config, until=until) is None
    shards = {shard: shard.read_bytes() for shard in path.glob("rollouts/*/*.parquet")}
    run(path, config)
    assert tables(RunDirectory(path)) == tables(RunDirectory(finished))
    assert {shard: shard.read_bytes() for shard in shards} == shards


@pytest.mark.parametrize("rounds", [1, 2])
def test_shortening_a_run_is_rejected_without_side_effects(tmp_path, rounds):
    path = tmp_path / "run"
    run(path, small_config(), until=2)
    with pytest.raises(
        InputError, match="2 rounds are already recorded, and a run can be extended but not shortened"
    ):
        run(path, small_config(rounds=rounds))
    assert run(path, small_config()) is not None


def test_a_longer_run_continues_a_finished_one(tmp_path):
    path = tmp_path / "small"
    short = run(path, small_config(rounds=2))
    long = run(path, small_config(rounds=3))
    at_once = run(tmp_path / "at_once", small_config(rounds=3))
    assert short["rounds"] == 2
    assert (long["rounds"], long["policy_digest"]) == (3, at_once["policy_digest"])


def test_another_seed_is_another_run(finished, tmp_path):
    path = tmp_path / "other"
    run(path, small_config(seed=1, rounds=1))
    one, other = (RunDirectory(place).manifest("rollouts", 1) for place in (finished, path))
    assert one.digest != other.digest


@pytest.mark.parametrize("round", [1, 3])
def test_any_policy_is_reconstructed_bit_for_bit_from_draws(finished, tmp_path, round):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    directory, config = RunDirectory(copy), small_config(reference__reset_every=2)
    for number in checkpoint_rounds(directory.checkpoints):
        if number > 0:
            shutil.rmtree(directory.checkpoint(number))
    with open_run_context(directory, config) as context:
        policy = Policy.of(directory.manifest("learning", round))
        rebuilt = policy_digest(context.learner_at(policy).model)
    if round == 3:
        assert rebuilt == directory.manifest("checkpoint", 3).info["content"]
    else:
        assert rebuilt != policy_digest(load_model(directory.checkpoint(0)))


def test_a_changed_draw_is_detected_when_a_policy_is_reconstructed(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    directory = RunDirectory(copy)
    path = copy / directory.facts(3, "draws")
    rows = pq.read_table(path)
    place = rows.schema.get_field_index("reward")
    changed = rows.column("reward").to_numpy().copy()
    changed[0] += 1
    with open_run_context(directory, small_config(reference__reset_every=2)) as context:
        # Behind the back of an open context: changes before opening are quarantined.
        shutil.rmtree(directory.checkpoint(3))
        pq.write_table(rows.set_column(place, rows.schema.field(place), [changed]), path)
        with pytest.raises(CorruptData, match="a different policy than round 3 recorded"):
            context.learner_at(Policy.of(directory.manifest("learning", 3)))


def test_every_round_records_the_bits_of_its_weights(finished):
    directory = RunDirectory(finished)
    rounds = directory.manifests(("learning",))
    weights = dict(load_model(directory.checkpoint(0)).named_parameters())
    assert rounds[0].info["weights_before"] == weights_checksum(weights)
    assert [one.info["weights_before"] for one in rounds[1:]] == [one.info["weights"] for one in rounds[:-1]]
    last = dict(load_model(directory.checkpoint(3)).named_parameters())
    assert rounds[-1].info["weights"] == weights_checksum(last)
    assert len({one.info["weights"] for one in rounds}) == 3
    assert summarise(directory)["rounds_from_other_weights"] == []


@pytest.mark.parametrize("on_gpu", [False, True])
def test_weights_that_come_out_different_are_refused_on_a_cpu_and_recorded_on_a_gpu(
    finished, tmp_path, on_gpu, monkeypatch, caplog
):
    """As if the processor had summed in another order."""
    shutil.copytree(finished, tmp_path / "copy")
    directory, config = RunDirectory(tmp_path / "copy"), small_config(rounds=4, reference__reset_every=2)
    shutil.rmtree(directory.checkpoint(3))
    (directory.manifest_path("checkpoint", 3)).unlink()
    step = Learner._step

    def differing(self):
        step(self)
        with torch.no_grad():
            next(self.model.parameters())[-1, 0] *= 1 + 2**-23

    monkeypatch.setattr(Learner, "_step", differing)
    if on_gpu:  # everything else runs on this machine's CPU
        monkeypatch.setattr(reconstruction, "repeats_bits", lambda directory, round: False)
        run(directory.path, config)
        assert "gives different weights than round 3 recorded" in caplog.text
        assert summarise(directory)["rounds_from_other_weights"] == [4]
    else:
        with pytest.raises(
            CorruptData, match="gives different weights than round 3 recorded; resume it on the kind of"
        ):
            run(directory.path, config)


def test_a_reference_is_read_once_until_there_is_another(tmp_path, monkeypatch):
    read, load = [], load_model

    def counting(directory, settings):
        read.append(directory.name)
        return load(directory, settings)

    monkeypatch.setattr("reval_core.learning.replica.load_model", counting)
    config = small_config(rounds=6, reference__reset_every=3, evaluation__every=9)
    digest = run(tmp_path / "run", config)["policy_digest"]
    # Rounds 1 and 4 start with the reference itself: nothing is read for them.
    assert read == ["round=00000", "round=00003"]
    monkeypatch.setattr(Replica, "_reference", property(lambda self: None, lambda self, value: None), raising=False)
    assert run(tmp_path / "again", config)["policy_digest"] == digest
    assert read[2:] == ["round=00000"] * 2 + ["round=00003"] * 2


def test_a_shard_of_an_interrupted_round_is_not_generated_again(run_path):
    config, directory = small_config(), RunDirectory(run_path)
    with open_run_context(directory, config) as context:
        done = first_round(context, ["rollouts"])
    second = directory.path / directory.shard(1, 1)
    kept = (directory.path / directory.shard(1, 0)).stat().st_mtime_ns
    for path in (second, second.with_suffix(".json"), directory.manifest_path("rollouts", 1)):
        path.unlink()
    with open_run_context(directory, config) as context:
        again = first_round(context, ["rollouts"])
    assert again["rollouts"].files == done["rollouts"].files
    assert again["rollouts"].info["shards_reused"] == 1
    assert (directory.path / directory.shard(1, 0)).stat().st_mtime_ns == kept


def test_a_shard_with_a_flipped_byte_is_generated_again(run_path):
    config, directory = small_config(), RunDirectory(run_path)
    with open_run_context(directory, config) as context:
        done = first_round(context, ["rollouts"])
    shard = directory.path / directory.shard(1, 0)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    directory.manifest_path("rollouts", 1).unlink()
    with open_run_context(directory, config) as context:
        assert first_round(context, ["rollouts"])["rollouts"].files == done["rollouts"].files


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["whole", "lora"])
def test_a_run_in_bfloat16_resumes_bit_for_bit(lora, tmp_path):
    """Checkpoints contain float32 weights; a resumed run computes with their copy, as before."""
    config = small_config(learner__precision="bfloat16", reference__reset_every=2, model__lora=lora)
    run(tmp_path / "broken", config, until=1)
    again, whole = run(tmp_path / "broken", config), run(tmp_path / "whole", config)
    directory = RunDirectory(tmp_path / "broken")
    assert again["policy_digest"] == whole["policy_digest"]
    assert tables(directory) == tables(RunDirectory(tmp_path / "whole"))
    assert not [problem for result in check_run(directory, config) for problem in result.problems]
    views = sql_views(directory.path, directory.manifests())
    noise = "SELECT min(noise_logprob), min(noise_value), bool_or(noise_value IS NULL) FROM draws"
    logprob, value, unknown = views.execute(noise).fetchone()
    assert (logprob >= LEAST["bfloat16"].logprob, value >= LEAST["bfloat16"].value, unknown) == (True, True, False)
    assert views.execute("SELECT max(engine_gap) FROM scores").fetchone()[0] < 0.05
    same = "SELECT max(abs(value_term)), count(*) FROM scores WHERE policy = reference AND round = 3"
    assert views.execute(same).fetchone() == (0, 64), "the reference after a reset is the policy's copy bit for bit"
    if lora is None:
        exported = [tmp_path / "copy", tmp_path / "masters"]
        for out in exported:
            show_exported_model(directory.path, round=None, out=out, as_json=True, masters=out.name == "masters")
        copy, masters = (load_file(out / "model.safetensors") for out in exported)
        assert policy_digest(load_model(exported[1])) == again["policy_digest"]
        assert all(torch.equal(copy[name], low_precision(one, 0, name)) for name, one in masters.items())


def test_trajectories_beyond_the_age_limit_leave_the_buffer_and_are_not_drawn(tmp_path):
    settings = {"replay__max_age": 1, "replay__sampling": "prioritised", "reference": {"reset_every": 3}}
    config = small_config(rounds=4, learner__updates=3, **settings)
    directory = RunDirectory(tmp_path / "aged")
    run(directory.path, config)
    views = sql_views(directory.path, directory.manifests())
    drawn = "SELECT round, max(staleness) FROM draws GROUP BY round ORDER BY round"
    assert views.execute(drawn).fetchall() == [(1, 0), (2, 1), (3, 1), (4, 1)]
    rescored = views.execute(
        "SELECT DISTINCT t.round FROM scores s JOIN trajectories t USING (trajectory_id) "
        "WHERE s.round = 3 AND s.policy = s.reference ORDER BY 1"
    ).fetchall()
    assert rescored == [(2,), (3,)]
    directory.summary.write_text("{}")
    assert plan(directory, config).last_round == 2  # the tokens of the rest are kept
    rebuild_store(directory, config.replay.capacity, config.replay.max_age)
    assert not [result.problems for result in check_run(directory, config) if result.problems]
    with duckdb.connect(directory.database, read_only=True) as database:
        assert database.execute("SELECT DISTINCT round FROM buffer ORDER BY 1").fetchall() == [(3,), (4,)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["reval", "regression"])
def test_a_run_with_only_zero_rewards_does_not_change_the_policy(kind, precision, tmp_path):
    """Through the store, prioritised draws, other batch shapes and AdamW: no draw is more than noise."""
    config = small_config(
        objective={"kind": kind, "beta": 0.1},
        learner__precision=precision,
        rounds=4,
        verification__methods=["boxed"],  # no response has a box: every answer is unparsed, every reward 0
        replay__sampling="prioritised",
        learner__updates=3,
        learner__lr=3e-4,
        learner__micro_batch_tokens=200,
        rollouts__temperature=5.0,  # long, unlike responses: scores that depend on their neighbours
        rollouts__max_tokens=24,
    )
    path = tmp_path / "still"
    summary = run(path, config)
    start = load_model(RunDirectory(path).checkpoint(0))
    assert summary["policy_digest"] == policy_digest(start)
    assert any((one != one.bfloat16()).any() for one in start.parameters()), (
        "weights that bfloat16 cannot represent"
    )
    views = sql_views(path, RunDirectory(path).manifests())
    assert views.execute("SELECT count(DISTINCT verdict), min(verdict) FROM verdicts").fetchone() == (1, "unparsed")
    assert views.execute("SELECT bool_and(skipped), count(*) FROM updates").fetchone() == (True, 12)
    assert views.execute("SELECT max(abs(delta)) FROM residuals").fetchone()[0] > 0, "no noise, nothing tested"


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"kind": "grpo"}, "replay__capacity": 64},
        {"objective": {"kind": "grpo"}, "replay__capacity": 64, "rollouts__temperature": 0.7},
        {"objective": {"kind": "grpo"}, "replay__capacity": 64, "rollouts__dynamic_sampling": {"waves": 1}},
        {"objective": {"kind": "tbrm", "beta": 0.5}, "learner__updates": 1},
        {"objective": {"kind": "regression", "beta": 0.5}},
        {"reward__kind": "centred"},
        {"reward__kind": "signed", "replay__sampling": "fresh", "replay__first": "buffer"},
        {"replay__sampling": "prioritised", "rollouts__temperature": 0.8},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_objective_reward_and_sampling_runs(tmp_path, changes):
    summary = run(tmp_path / "run", small_config(rounds=2, **changes))
    assert summary["rounds"] == 2
    views = sql_views(tmp_path / "run", RunDirectory(tmp_path / "run").manifests())
    losses, norms = zip(*views.sql("SELECT loss, grad_norm FROM updates").fetchall(), strict=True)
    assert np.isfinite(losses).all()
    assert max(norms) > 0
    assert views.execute("SELECT max(engine_gap) FROM scores").fetchone()[0] < 1e-4
    if changes.get("objective") == {"kind": "grpo"}:  # the first update's ratios and corrections are 1, at any T
        first = "SELECT metrics['kl'], metrics['corrected'] FROM updates WHERE round = 1 AND update = 1"
        assert views.execute(first).fetchone() == pytest.approx((0.0, 0.0), abs=1e-8)


def test_the_run_stops_when_too_many_responses_cannot_be_judged(run_path):
    """A timeout says nothing about the answer: it must not count as wrong in training."""
    config = small_config(verification__timeout_seconds=1e-6, verification__mode="lenient")
    directory = RunDirectory(run_path)
    with open_run_context(directory, config) as context:
        done = first_round(context, ["rollouts"])
        path = directory.path / done["rollouts"].files[0].path
        rows = pq.read_table(path)
        place = rows.schema.get_field_index("response")
        answers = rows.column("response").to_pylist()
        answers[:5] = [rf"\int_0^1 {number} x \, dx" for number in range(1, 6)]  # which need a worker
        reasons = pa.array(["stop"] * len(rows))
        rows = rows.set_column(place, "response", [answers])
        pq.write_table(
            rows.set_column(rows.schema.get_field_index("finish_reason"), "finish_reason", reasons), path
        )
        with pytest.raises(RunStopped, match=r"could not be judged \(\d+ timeouts"):
            stages.verification(context, 1, done["rollouts"])
        assert directory.manifest("verification", 1) is None


def test_a_collapsed_run_names_its_last_good_checkpoint(run_path):
    config = small_config(rounds=30, learner__lr=1.0, collapse={"below": 0.5, "rounds": 3})
    complaint = pytest.raises(RunStopped, match=r"last good checkpoint is .*checkpoints/round=0000\d")
    with open_run_context(RunDirectory(run_path), config) as context, complaint:
        for _ in train_rounds(context):
            pass


def test_a_run_directory_of_another_config_is_refused(finished):
    with pytest.raises(InputError, match=r"made with another config \(learner.lr, reference.reset_every differ\)"):
        RunDirectory(finished).check(small_config(learner__lr=1.0))


def test_the_record_of_the_machine_is_kept(finished):
    machine = json.loads((finished / "machine.json").read_text())
    assert machine["threads"] == 1
    assert machine["torch"].startswith("2.13")
