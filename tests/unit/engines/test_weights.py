"""Publishing weights to an engine: the contents of the files, and how rounding preserves small updates."""

import subprocess
import sys

import pytest
import torch
from transformers import LlamaForCausalLM

from reval_core.config import Lora
from reval_core.engines import weights
from reval_core.engines.weights import drop_weights, handover_directory, policy_tensors, write_weights
from reval_core.model.loading import load_model
from reval_core.model.lora import add_adapters
from reval_core.model.low_precision import low_precision, round_weights
from tests.models import tiny_model


def test_float32_weights_are_published_unchanged(tmp_path):
    model = tiny_model()
    write_weights(tmp_path, model, 0, torch.float32)
    loaded = load_model(tmp_path)
    assert all(torch.equal(one, loaded.state_dict()[name]) for name, one in model.state_dict().items())


def test_tied_weights_are_written_once(tmp_path):
    settings = tiny_model().config
    settings.tie_word_embeddings = True
    model = LlamaForCausalLM(settings).eval()
    assert "lm_head.weight" not in dict(policy_tensors(model, 0, torch.float32))
    write_weights(tmp_path, model, 0, torch.float32)
    tokens = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path)(tokens).logits, model(tokens).logits)


def test_adapters_are_merged(tmp_path):
    model = tiny_model()
    add_adapters(model, Lora(rank=4, alpha=8), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    write_weights(tmp_path, model, 0, torch.float32)
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        with_adapters, merged = model(tokens).logits, load_model(tmp_path)(tokens).logits
    assert torch.allclose(with_adapters, merged, atol=1e-4)
    assert not torch.allclose(tiny_model()(tokens).logits, merged, atol=1e-2)


def test_bfloat16_weights_are_rounded_with_the_seeds_thresholds():
    model = tiny_model()
    exact = dict(policy_tensors(model, 0, torch.float32))
    one, again, other = (dict(policy_tensors(model, seed, torch.bfloat16)) for seed in (0, 0, 1))
    for name, weight in exact.items():
        assert torch.equal(one[name], low_precision(weight, 0, name))
        assert torch.equal(one[name], again[name])
    assert any(not torch.equal(one[name], other[name]) for name in exact)


def test_a_learners_low_precision_copy_is_published_unchanged():
    exact, model = tiny_model(), tiny_model()
    round_weights(model, seed=0)
    by_learner = dict(policy_tensors(model, 1, torch.bfloat16))
    by_engine = dict(policy_tensors(exact, 0, torch.bfloat16))
    for name, tensor in by_learner.items():
        assert torch.equal(tensor, model.state_dict()[name])
        assert torch.equal(tensor, by_engine[name]), "a float32 learner with this seed gives the same"


def test_merged_adapters_of_a_copy_are_rounded_once():
    model = tiny_model()
    add_adapters(model, Lora(rank=4, alpha=8), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    round_weights(model, seed=0)
    layer = model.model.layers[0].self_attn.q_proj
    product = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float() * 2
    name = "model.layers.0.self_attn.q_proj.weight"
    merged = dict(policy_tensors(model, 0, torch.bfloat16))[name]
    assert torch.equal(merged, low_precision(layer.base_layer.weight.float() + product, 0, name))
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


def test_an_update_smaller_than_a_step_of_bfloat16_is_not_lost():
    """Published weights are bfloat16: with rounding to nearest, an update of a tenth of a step would be lost."""
    model, change = tiny_model(), 2.0**-12
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.full_like(parameter, 0.5))  # steps of 2^-8
            parameter.add_(change)
    exact = dict(policy_tensors(model, 0, torch.float32))
    published = dict(policy_tensors(model, 0, torch.bfloat16))
    moved = torch.cat([one.float().flatten() - 0.5 for one in published.values()])
    assert {float(one) for one in moved.unique()} == {0.0, 2.0**-8}
    deviation = (change * (2.0**-8 - change) / len(moved)) ** 0.5
    assert abs(float(moved.mean()) - change) < 4 * deviation
    nearest = torch.cat([one.to(torch.bfloat16).float().flatten() for one in exact.values()])
    assert (nearest == 0.5).all()


def test_directories_in_memory_left_by_dead_processes_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_MEMORY", tmp_path)
    script = (
        "import pathlib, torch; from reval_core.engines import weights; from tests.models import tiny_model\n"
        f"weights._MEMORY = pathlib.Path({str(tmp_path)!r})\n"
        "print(weights.handover_directory(tiny_model(), torch.float32))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (left,) = tmp_path.iterdir()
    assert str(left) == done.stdout.strip()
    own = [handover_directory(tiny_model(), torch.float32) for _ in range(2)]
    assert sorted(tmp_path.iterdir()) == sorted(own), "only directories of dead processes are deleted"


def test_weights_that_do_not_fit_into_memory_go_to_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_MEMORY", tmp_path / "no such directory")
    directory = handover_directory(tiny_model(), torch.float32)
    try:
        write_weights(directory, tiny_model(), 0, torch.float32)
        assert (directory / "model.safetensors").exists()
        drop_weights(directory)
        assert sorted(one.name for one in directory.iterdir()) == ["config.json"]
    finally:
        for one in directory.iterdir():
            one.unlink()
        directory.rmdir()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_have_the_requested_dtype(dtype):
    assert {one.dtype for one in dict(policy_tensors(tiny_model(), "a policy", dtype)).values()} == {dtype}
