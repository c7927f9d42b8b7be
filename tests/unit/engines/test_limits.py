"""Models and settings that vLLM cannot run on this machine are rejected before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from reval.flows.preparation import prepare, prepare_evaluation
from reval_core.config import AutoEngine, Model, TinyModel, TransformersEngine, VllmEngine
from reval_core.engines import choice
from reval_core.engines.choice import choose
from reval_core.engines.limits import check_engine, engine_context
from reval_core.errors import InputError
from reval_core.model.loading import context_length, make_tiny_tokenizer, save_model
from tests.conftest import SMALL
from tests.models import TINY, tiny_model

WIDE = Model(tiny=TinyModel(width=128, heads=4))
NARROW = Model(tiny=TinyModel(width=128, heads=16))
NEEDS_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="requires a machine without a GPU")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "vllm_installed", lambda: True)


def vllm(**settings: object) -> VllmEngine:
    return VllmEngine(kind="vllm", **settings)


def described(tmp_path: Path, **values: object) -> Model:
    """A model directory with a config but without weights."""
    sizes = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 32,
        "max_position_embeddings": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps(sizes | values))
    return Model(path=str(tmp_path))


@NEEDS_CPU
def test_head_sizes_that_vllm_does_not_support_on_a_cpu_are_rejected_and_auto_avoids_them():
    check_engine(WIDE, vllm())
    with pytest.raises(InputError, match=r"engine\.kind: vLLM on a CPU does not support .* head size of 8 "):
        check_engine(NARROW, vllm())
    check_engine(NARROW, TransformersEngine())
    assert choose(NARROW, AutoEngine(kind="auto")).kind == "transformers"
    assert choose(WIDE, AutoEngine(kind="auto")).kind == "vllm"


@NEEDS_CPU
@pytest.mark.parametrize(
    ("head_dim", "supported"), [(48, False), (64, True), (72, False), (96, True), (320, False)]
)
def test_the_head_size_follows_from_the_config(tmp_path, head_dim, supported):
    model = described(tmp_path, head_dim=head_dim)
    if supported:
        check_engine(model, vllm())
    else:
        with pytest.raises(InputError, match=f"this model's head size of {head_dim} "):
            check_engine(model, vllm())


@NEEDS_CPU
def test_a_model_without_attention_is_accepted(tmp_path):
    check_engine(described(tmp_path, model_type="mamba", num_attention_heads=None, state_size=4), vllm())


def test_a_longer_context_than_the_models_is_rejected(tmp_path):
    model = described(tmp_path)
    check_engine(model, vllm(max_model_len=1024))
    with pytest.raises(InputError, match=r"engine\.max_model_len: 1025 exceeds the model's context length of 1024"):
        check_engine(model, vllm(max_model_len=1025))


@pytest.mark.parametrize(
    ("rope", "context", "engines"),
    [
        ({"rope_type": "default"}, 1024, 1024),
        ({"rope_type": "linear", "factor": 4.0}, 4096, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024, 1024),
        (
            {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 16, "long_factor": [1.0] * 16},
            1024,
            256,
        ),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
def test_the_context_of_an_engine_is_its_default_or_its_setting(tmp_path, rope, context, engines):
    own = {"rope_parameters": {"rope_theta": 1e4, **rope}, "original_max_position_embeddings": 256}
    model = described(tmp_path, **own)
    assert context_length(model) == context
    assert engine_context(model, TransformersEngine()) == context
    assert engine_context(model, vllm()) == engines
    assert engine_context(model, vllm(max_model_len=100)) == 100


def test_a_dtype_that_the_model_or_the_gpu_does_not_support_is_rejected(tmp_path, monkeypatch):
    gemma = described(tmp_path, model_type="gemma2", head_dim=32, architectures=["Gemma2ForCausalLM"])
    check_engine(gemma, vllm(dtype="bfloat16"))
    with pytest.raises(InputError, match=r"engine\.dtype: vLLM does not support gemma2 in float16; set bfloat16"):
        check_engine(gemma, vllm(dtype="float16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    check_engine(WIDE, vllm(dtype="float16"))
    with pytest.raises(
        InputError, match=r"engine\.dtype: this GPU \(compute capability 7\.5\) does not support bfloat16"
    ):
        check_engine(WIDE, vllm())


def test_a_tensor_parallel_size_above_the_gpus_or_that_does_not_divide_the_heads_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"engine\.tensor_parallel_size: 2 exceeds the number of GPUs \(0\)"):
        check_engine(WIDE, vllm(tensor_parallel_size=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    check_engine(WIDE, vllm(tensor_parallel_size=4))
    with pytest.raises(InputError, match=r"tensor_parallel_size: 3 does not divide the model's 4 attention heads"):
        check_engine(WIDE, vllm(tensor_parallel_size=3))


@NEEDS_CPU
def test_training_and_evaluation_are_rejected_before_they_start(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL | {"engine": {"kind": "vllm"}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"engine\.kind: vLLM on a CPU does not support .* head size of 16 "):
        prepare(config, [], tmp_path / "run")
    prepare(config, ["model.tiny.heads=2"], tmp_path / "run")
    with pytest.raises(InputError, match=r"engine\.max_model_len: 300 exceeds the model's context length of 256"):
        prepare(config, ["model.tiny.heads=2", "engine.max_model_len=300"], tmp_path / "run")
    save_model(tiny_model(), make_tiny_tokenizer(TINY.characters), tmp_path / "model")
    overrides = ["benchmarks=[{arithmetic: {digits: 1}}]", "prompt={user: '{problem}'}", "engine.kind=vllm"]
    with pytest.raises(InputError, match=r"engine\.kind: vLLM on a CPU does not support .* head size of 16 "):
        prepare_evaluation(str(tmp_path / "model"), None, overrides, None, tmp_path / "eval")
    assert not (tmp_path / "run").exists()
