"""Runs that train adapters: the base is the reference, stays unchanged, and is stored once."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reval.flows.rounds import train_rounds
from reval_core.config import Lora
from reval_core.errors import InputError
from reval_core.model.loading import load_model, load_tokenizer, policy_digest
from reval_core.model.lora import add_adapters, load_adapters
from reval_core.pipeline.run_context import Policy, open_run_context
from reval_core.storage.run_directory import RunDirectory
from reval_core.storage.tables import read_table
from tests.runs import run, small_config

LORA = {"rank": 4, "alpha": 8}


def lora_config(**changes):
    return small_config(model__lora=LORA, rounds=3, learner__lr=1e-2, checkpoints__every=1, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three rounds, with a reference reset after the second."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("runs") / "lora"
    summary = run(path, lora_config(reference__reset_every=2))
    return RunDirectory(path), summary


def test_the_run_learns_and_records_its_adapters(finished):
    directory, summary = finished
    assert summary["rounds"] == 3
    updates = read_table(directory.path / directory.facts(3, "updates"))
    assert min(updates.column("grad_norm").to_pylist()) > 0


def test_a_checkpoint_holds_the_adapters_and_nothing_of_the_base(finished):
    directory, _ = finished
    saved = load_file(directory.checkpoint(3) / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B"}
    base = sum(tensor.numel() for tensor in load_file(directory.base / "model.safetensors").values())
    assert sum(tensor.numel() for tensor in saved.values()) < base / 4
    assert not (directory.checkpoint(3) / "model.safetensors").exists()


def test_the_initial_policy_is_its_own_reference_bit_for_bit(finished):
    directory, _ = finished
    scores = read_table(directory.path / directory.facts(1, "scores"))
    assert scores.column("log_ref").equals(scores.column("log_policy"))
    model = load_model(directory.base)
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        model.load_adapter(str(directory.checkpoint(0)))
        assert torch.equal(model(tokens).logits, expected)


def test_a_later_reference_is_another_set_of_adapters(finished):
    directory, _ = finished
    scores = read_table(directory.path / directory.facts(3, "scores"))
    assert scores.column("log_ref").equals(scores.column("log_policy")), "round 3 starts at the new reference"


def test_transformers_loads_a_checkpoint_onto_the_base(finished):
    directory, summary = finished
    by_peft, by_us = load_model(directory.base), load_model(directory.base)
    by_peft.load_adapter(str(directory.checkpoint(3)))
    add_adapters(by_us, Lora(**LORA), seed=5)
    load_adapters(by_us, directory.checkpoint(3), seed=0)
    assert policy_digest(by_us) == summary["policy_digest"]
    tokens = load_tokenizer(directory.base)("12+34=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(by_peft(tokens).logits, by_us(tokens).logits)


def test_an_interrupted_run_resumes_bit_for_bit(finished, tmp_path):
    _, summary = finished
    config = lora_config(reference__reset_every=2)
    run(tmp_path / "lora", config, until=2)
    assert run(tmp_path / "lora", config)["policy_digest"] == summary["policy_digest"]


def test_scoring_the_reference_leaves_the_policy_as_it_was(tmp_path):
    """Between two rounds the reference's adapters replace the learner's temporarily."""
    directory = RunDirectory(tmp_path / "lora")
    with open_run_context(directory, lora_config()) as context:
        for number in train_rounds(context):
            if number == 2:
                break
    manifest = directory.manifest("learning", 2)
    assert manifest is not None
    with open_run_context(directory, lora_config()) as context:
        learner = context.learner_at(Policy.of(manifest))
        before = policy_digest(learner.model)
        zero = directory.manifest("warm_start", 0)
        assert zero is not None
        texts = [np.array([5, 6])], [np.array([7, 8])], [np.array([True, True])]
        by_policy = context.scores(context.by_policy(Policy.of(manifest)), texts)
        by_reference = context.scores(context.by_reference(Policy.of(zero)), texts)
        assert not torch.equal(by_policy[0].scores.logprobs, by_reference[0].scores.logprobs)
        assert policy_digest(learner.model) == before


def test_targets_that_no_layer_has_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.lora\.targets"):
        run(tmp_path / "lora", small_config(model__lora={"targets": ["nowhere"]}), until=1)
