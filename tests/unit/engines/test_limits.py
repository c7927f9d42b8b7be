"""What vLLM could not run on this machine is refused before it is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from flows.preparation import prepare, prepare_evaluation
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
NEEDS_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "vllm_installed", lambda: True)


def vllm(**settings: object) -> VllmEngine:
    return VllmEngine(kind="vllm", **settings)


def described(tmp_path: Path, **values: object) -> Model:
    """A model of which only the architecture is there."""
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
def test_heads_that_vllm_has_no_attention_for_on_a_cpu_are_refused_and_auto_avoids_them():
    check_engine(WIDE, vllm())
    with pytest.raises(InputError, match=r"engine\.kind: on a CPU vLLM has no attention for heads of 8, as this"):
        check_engine(NARROW, vllm())
    check_engine(NARROW, TransformersEngine())
    assert choose(NARROW, AutoEngine(kind="auto")).kind == "transformers"
    assert choose(WIDE, AutoEngine(kind="auto")).kind == "vllm"


@NEEDS_CPU
@pytest.mark.parametrize(("head_dim", "taken"), [(48, False), (64, True), (72, False), (96, True), (320, False)])
def test_a_head_is_as_wide_as_the_config_says(tmp_path, head_dim, taken):
    model = described(tmp_path, head_dim=head_dim)
    if taken:
        check_engine(model, vllm())
    else:
        with pytest.raises(InputError, match=f"heads of {head_dim}, as this model has"):
            check_engine(model, vllm())


@NEEDS_CPU
def test_a_model_without_attention_has_no_heads_to_refuse(tmp_path):
    check_engine(described(tmp_path, model_type="mamba", num_attention_heads=None, state_size=4), vllm())


def test_a_longer_context_than_the_models_is_refused(tmp_path):
    model = described(tmp_path)
    check_engine(model, vllm(max_model_len=1024))
    with pytest.raises(InputError, match=r"engine\.max_model_len: 1025 is more than the model's context of 1024"):
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
def test_the_context_of_an_engine_is_what_it_takes_by_default_or_by_its_setting(tmp_path, rope, context, engines):
    own = {"rope_parameters": {"rope_theta": 1e4, **rope}, "original_max_position_embeddings": 256}
    model = described(tmp_path, **own)
    assert context_length(model) == context
    assert engine_context(model, TransformersEngine()) == context
    assert engine_context(model, vllm()) == engines
    assert engine_context(model, vllm(max_model_len=100)) == 100


def test_a_type_that_the_model_or_the_gpu_has_not_is_refused(tmp_path, monkeypatch):
    gemma = described(tmp_path, model_type="gemma2", head_dim=32, architectures=["Gemma2ForCausalLM"])
    check_engine(gemma, vllm(dtype="bfloat16"))
    with pytest.raises(InputError, match=r"engine\.dtype: vLLM does not run gemma2 in float16; set bfloat16"):
        check_engine(gemma, vllm(dtype="float16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    check_engine(WIDE, vllm(dtype="float16"))
    with pytest.raises(InputError, match=r"engine\.dtype: this GPU \(compute capability 7\.5\) has no bfloat16"):
        check_engine(WIDE, vllm())


def test_more_parts_than_gpus_or_than_divide_the_heads_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"engine\.tensor_parallel_size: 2 is more than the 0 GPUs"):
        check_engine(WIDE, vllm(tensor_parallel_size=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    check_engine(WIDE, vllm(tensor_parallel_size=4))
    with pytest.raises(InputError, match=r"tensor_parallel_size: 3 does not divide the model's 4 attention heads"):
        check_engine(WIDE, vllm(tensor_parallel_size=3))


@NEEDS_CPU
def test_training_and_evaluation_ask_before_they_begin(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL | {"engine": {"kind": "vllm"}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"engine\.kind: on a CPU vLLM has no attention for heads of 16"):
        prepare(config, [], tmp_path / "run")
    prepare(config, ["model.tiny.heads=2"], tmp_path / "run")
    with pytest.raises(InputError, match=r"engine\.max_model_len: 300 is more than the model's context of 256"):
        prepare(config, ["model.tiny.heads=2", "engine.max_model_len=300"], tmp_path / "run")
    save_model(tiny_model(), make_tiny_tokenizer(TINY.characters), tmp_path / "model")
    asked = ["benchmarks=[{arithmetic: {digits: 1}}]", "prompt={user: '{problem}'}", "engine.kind=vllm"]
    with pytest.raises(InputError, match=r"engine\.kind: on a CPU vLLM has no attention for heads of 16"):
        prepare_evaluation(str(tmp_path / "model"), None, asked, None, tmp_path / "eval")
    assert not (tmp_path / "run").exists()
