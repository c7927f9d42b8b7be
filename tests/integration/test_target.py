"""`evaluation.target`: a run that ends once its policy is good enough."""

from pathlib import Path

from reval_core.maintenance.prune import plan
from reval_core.pipeline.run_context import open_run_context
from reval_core.report import write_report
from reval_core.storage.run_directory import RunDirectory
from tests.runs import run, small_config

# The initial policy is correct a third of the time: rounds 1 and 2 are near 0.3, and reach 0.05 at once.
EASY = {"rounds": 4, "evaluation__every": 4}


def rounds_on_record(directory: RunDirectory, stage: str) -> list[int]:
    return [one.round for one in directory.manifests((stage,))]


def test_a_run_ends_where_its_policy_reaches_the_target(tmp_path: Path) -> None:
    config = small_config(**EASY, evaluation__target=0.05)
    directory = RunDirectory(tmp_path / "run")
    summary = run(directory.path, config)
    assert summary is not None
    assert summary["rounds"] == 1
    assert summary["final_accuracy"] >= 0.05
    assert rounds_on_record(directory, "checkpoint")[-1] == 1, "the policy that reached it is kept"
    assert directory.is_finished(config)
    write_report(directory)
    assert "not finished" not in directory.report.read_text()


def test_it_ends_there_again_when_restarted(tmp_path: Path) -> None:
    config = small_config(**EASY, evaluation__target=0.05)
    directory = RunDirectory(tmp_path / "run")
    run(directory.path, config, until=0)
    assert not directory.is_finished(config)
    first = run(directory.path, config)
    again = run(directory.path, config)
    assert first is not None
    assert again is not None
    assert {**again, "wall_seconds": 0} == {**first, "wall_seconds": 0}
    assert rounds_on_record(directory, "recording") == [1]


def test_an_unreachable_target_changes_no_policy(tmp_path: Path) -> None:
    near, plain = (
        run(tmp_path / name, small_config(**EASY, **target))
        for name, target in (("near", {"evaluation__target": 1.0}), ("plain", {}))
    )
    assert near is not None
    assert plain is not None
    assert near["rounds"] == plain["rounds"] == 4
    assert near["policy_digest"] == plain["policy_digest"]


def test_rounds_near_the_target_are_evaluated(tmp_path: Path) -> None:
    for target, evaluated in ((0.99, [0, 4]), (0.6, [0, 1, 4])):  # round 1 has 13 of 32 correct, later ones fewer
        directory = RunDirectory(tmp_path / str(target))
        run(directory.path, small_config(**EASY, evaluation__target=target))
        assert rounds_on_record(directory, "evaluation") == evaluated


def test_a_batch_of_its_own_changes_no_training(tmp_path: Path) -> None:
    together, apart = (
        run(tmp_path / str(batch), small_config(rounds=1, evaluation__batch=batch)) for batch in (None, 3)
    )
    assert together is not None
    assert apart is not None
    assert together["policy_digest"] == apart["policy_digest"]


def test_a_finished_run_can_be_pruned(tmp_path: Path) -> None:
    from reval_core.atomic_files import publish_json

    config = small_config(**EASY, evaluation__target=0.05)
    directory = RunDirectory(tmp_path / "run")
    publish_json(directory.summary, run(directory.path, config))
    assert plan(directory, config).last_round >= 0


def test_all_samples_are_generated_only_near_the_target(tmp_path: Path) -> None:
    for target, samples in ((0.05, 8), (0.99, 4)):
        config = small_config(**EASY, evaluation__target=target, evaluation__samples=8)
        directory = RunDirectory(tmp_path / str(target))
        run(directory.path, config)
        with open_run_context(directory, config) as context:
            (row,) = context.store.query("SELECT count(*) AS rows FROM evaluations WHERE round = 0").to_pylist()
            assert row["rows"] == samples * len(context.held_out)
