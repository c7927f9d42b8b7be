"""A reference that is a running average of policies: its weights, its scores, and how it is reconstructed."""

import shutil
from pathlib import Path

import pytest
import torch

from reval_core.config import Config
from reval_core.learning.checkpoints import checkpoint_state
from reval_core.maintenance.check import check_run
from reval_core.model.loading import load_model, policy_digest
from reval_core.model.low_precision import round_weights
from reval_core.model.scoring import score
from reval_core.model.token_batch import CPU_TOKENS, collate, micro_batches
from reval_core.pipeline.reconstruction import Policy, recorded_policy
from reval_core.pipeline.reference_average import drop_averages, next_reference
from reval_core.pipeline.run_context import open_run_context
from reval_core.replay_buffer.index import sql_views
from reval_core.stages.noise import texts_of
from reval_core.stages.reference_reset import live_trajectories
from reval_core.storage.run_directory import RunDirectory
from tests.integration.test_training import tables
from tests.runs import run, small_config

EMA = 0.75
CHANGES = {"reference": {"reset_every": 1, "ema": EMA}, "replay__capacity": 96, "rollouts__prompts": 8}


def config(precision: str) -> Config:
    return small_config(**CHANGES, learner__precision=precision)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A finished run that tests may read and, as `broken`, its state after the second round."""
    path = tmp_path_factory.mktemp("average") / "run"
    run(path, config(request.param), until=2)
    shutil.copytree(path, path.with_name("broken"))
    run(path, config(request.param))
    return path, config(request.param)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: one.detach().double() for name, one in load_model(path).named_parameters()}


def test_the_weights_are_the_average_of_those_at_resets(finished, tmp_path):
    path, settings = finished
    shutil.copytree(path, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    expected = weights(directory.checkpoint(0))
    with open_run_context(directory, settings) as context:
        for round in (1, 2, 3):
            with context.learner_at(recorded_policy(directory, round)).masters() as model:
                newer = {name: one.detach().double() for name, one in model.named_parameters()}
            expected = {name: EMA * one + (1 - EMA) * newer[name] for name, one in expected.items()}
            found = weights(directory.average(round))
            for name, one in expected.items():
                torch.testing.assert_close(found[name], one, rtol=1e-6, atol=1e-8)
                assert not torch.equal(found[name], newer[name])
    assert checkpoint_state(directory.average(3))["content"] == policy_digest(load_model(directory.average(3)))


def test_live_trajectories_are_scored_by_the_average(finished, tmp_path):
    path, settings = finished
    shutil.copytree(path, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    with open_run_context(directory, settings) as context:
        live, rows = live_trajectories(context)
        model = load_model(directory.average(3))
        if settings.learner.precision == "bfloat16":
            round_weights(model, settings.seed)
        texts = texts_of(rows)
        lengths = [len(prompt) + len(response) for prompt, response in zip(*texts[:2], strict=True)]
        with torch.inference_mode():
            for chosen in micro_batches(lengths, CPU_TOKENS):
                scores = score(model, collate(*([column[row] for row in chosen] for column in texts)), 1.0)
                for name, found in (("log_ref", scores.log_policy), ("value_ref", scores.value)):
                    stored = torch.from_numpy(live.column(name).to_numpy()[chosen])
                    torch.testing.assert_close(found.float(), stored, rtol=0, atol=0)
    names = sql_views(directory.path, directory.manifests()).execute(
        "SELECT DISTINCT reference FROM scores WHERE round = 3"
    )
    assert (directory.manifest("reference_reset", 3).info["reference"],) in names.fetchall()


@pytest.mark.parametrize("lost", ["the newest", "all", "a flipped byte", "scores of an older one"])
def test_what_is_lost_is_reconstructed_bit_for_bit(finished, tmp_path, lost):
    path, settings = finished
    broken = tmp_path / "run"
    shutil.copytree(path.with_name("broken"), broken)
    directory = RunDirectory(broken)
    if lost == "a flipped byte":
        file = directory.average(2) / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif lost == "scores of an older one":
        (broken / directory.facts(2, "scores")).unlink()
    for one in (
        directory.averages()[-1:] if lost == "the newest" else directory.averages() * (lost != "a flipped byte")
    ):
        shutil.rmtree(one)
    run(broken, settings)
    assert tables(directory) == tables(RunDirectory(path))
    assert checkpoint_state(directory.average(3)) == checkpoint_state(RunDirectory(path).average(3))
    assert not [problem for result in check_run(directory, settings) for problem in result.problems]


def test_only_the_newest_averages_are_kept(tmp_path):
    directory = RunDirectory(tmp_path)
    for round in (2, 4, 6, 8):
        directory.average(round).mkdir(parents=True)
    drop_averages(directory)
    assert [one.name for one in directory.averages()] == ["reference=00006", "reference=00008"]


def test_its_name_follows_from_its_parts():
    start, policy = Policy(0, "start"), Policy(3, "policy")
    found = next_reference(start, policy, 0.5)
    others = [
        next_reference(start, policy, 0.25),
        next_reference(policy, policy, 0.5),
        next_reference(start, start, 0.5),
    ]
    assert (found.round, found.averaged) == (3, True)
    assert len({found.identity, policy.identity, *(one.identity for one in others)}) == 5
    assert next_reference(start, policy, None) == policy


def test_adapters_are_refused():
    with pytest.raises(ValueError, match=r"reference\.ema: averaging two adapters does not"):
        small_config(**CHANGES, model__lora={"rank": 4, "alpha": 8})


def test_an_average_of_equal_policies_is_that_policy_bit_for_bit(tmp_path):
    settings = small_config(**CHANGES, rounds=2, learner__lr=1e-30)
    run(tmp_path / "run", settings)
    directory = RunDirectory(tmp_path / "run")
    start = checkpoint_state(directory.checkpoint(0))["content"]
    assert {checkpoint_state(one)["content"] for one in [*directory.averages(), directory.checkpoint(2)]} == {start}
