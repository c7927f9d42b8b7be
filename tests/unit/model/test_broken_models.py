"""Model directories with one fault each are refused in one line before any work."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from reval.flows.importing import import_file
from reval.flows.preparation import prepare, prepare_evaluation
from reval_core.config import Model
from reval_core.errors import InputError
from reval_core.model.finite import _first_fault
from reval_core.model.loading import check_model, load_model, make_tiny_tokenizer, save_model
from tests.conftest import SMALL
from tests.models import TINY, tiny_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "sound"
    save_model(tiny_model(), make_tiny_tokenizer(TINY.characters), directory)
    return directory


@pytest.fixture
def directory(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def settings(directory: Path) -> Model:
    return Model(path=str(directory))


def change_weights(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    changed = change(load_file(directory / WEIGHTS))
    save_file(
        {name: one.contiguous().clone() for name, one in changed.items()}, directory / WEIGHTS, {"format": "pt"}
    )


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(directory: Path) -> dict[str, str]:
    """Shard the weights into two files with an index. Returns the weight map of the index."""
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: files["layers.1" in name] for name in tensors}
    for file in files:
        save_file({name: tensors[name] for name in tensors if places[name] == file}, directory / file)
    write_index(directory, places)
    return places


def write_index(directory: Path, places: dict[str, str]) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def renamed(prefix: str) -> Callable[[Path], None]:
    return lambda directory: change_weights(
        directory, lambda given: {prefix + name: one for name, one in given.items()}
    )


def without(part: str) -> Callable[[Path], None]:
    return lambda directory: change_weights(
        directory, lambda given: {name: one for name, one in given.items() if part not in name}
    )


def reward_model(directory: Path) -> None:
    def change(given: Tensors) -> Tensors:
        return {"score.weight": given.pop("lm_head.weight")[:1], **given}

    change_weights(directory, change)


def one_layer_more(directory: Path) -> None:
    change_weights(
        directory, lambda given: given | {name.replace("layers.1", "layers.2"): one for name, one in given.items()}
    )


def fewer_rows(directory: Path) -> None:
    change_weights(directory, lambda given: given | {"lm_head.weight": given["lm_head.weight"][:-1]})


def pointer(directory: Path) -> None:
    (directory / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")


def resized(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda directory: (directory / WEIGHTS).write_bytes(change((directory / WEIGHTS).read_bytes())) and None


def longer_header(given: bytes) -> bytes:
    return (int.from_bytes(given[:8], "little") + 40).to_bytes(8, "little") + given[8:]


def pickled(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    torch.save({}, directory / "pytorch_model.bin")


def only_gguf(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "model-q4_k_m.gguf")


def adapters(directory: Path) -> None:
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere/else"}')


def lost_shard(directory: Path) -> None:
    (directory / max(shard(directory).values())).unlink()


def cut_shard(directory: Path) -> None:
    file = directory / min(shard(directory).values())
    file.write_bytes(file.read_bytes()[:-100])


def promised_tensor(directory: Path) -> None:
    places = shard(directory)
    write_index(directory, places | {"model.layers.2.mlp.up_proj.weight": min(places.values())})


def index_of_another_kind(directory: Path) -> None:
    shard(directory)
    (directory / INDEX).write_text('["weight_map"]')


def packed_integers(directory: Path) -> None:
    def change(given: Tensors) -> Tensors:
        name = "model.layers.0.mlp.up_proj.weight"
        return given | {name: given[name].to(torch.int8)}

    change_weights(directory, change)


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("module.", renamed("module."), r"missing lm_head\.weight, .* and 19 more; unexpected module\.lm_head\.weight"),
    ("_fsdp", renamed("_fsdp_wrapped_module."), r"unexpected _fsdp_wrapped_module\.lm_head\.weight"),
    ("layer lost", without("layers.0."), r"LlamaForCausalLM: missing model\.layers\.0\.\S+, .* and 7 more; save"),
    ("norm lost", without("model.norm"), r"missing model\.norm\.weight; save"),
    ("head lost", without("lm_head"), r"missing lm_head\.weight; save the causal language model itself"),
    ("reward model", reward_model, r"missing lm_head\.weight; unexpected score\.weight"),
    ("layer too many", one_layer_more, r"unexpected model\.layers\.2\.\S+, model\.layers\.2\.\S+ and 7 more"),
    ("rows", fewer_rows, r"lm_head\.weight \(17 × 32 in the weights, 18 × 32 by config\.json\); use the config"),
    ("pointer", pointer, r"model\.safetensors: model\.path: is a git-lfs pointer of \d+ bytes, not weights"),
    ("empty", resized(lambda given: b""), r"model\.safetensors: model\.path: is empty; download it again"),
    ("few bytes", resized(lambda given: given[:5]), r"model\.safetensors: model\.path: is "),
    (
        "cut",
        resized(lambda given: given[:-1]),
        r"is truncated: it has [0-9,]+ bytes, but its header describes [0-9,]+",
    ),
    ("cut in header", resized(lambda given: given[:300]), r"is truncated: it has 300 bytes"),
    ("longer", resized(lambda given: given + b"more"), r"is not a safetensors file"),
    ("header length", resized(longer_header), r"is not a safetensors file"),
    ("header", resized(lambda given: given[:8] + b"}" + given[9:]), r"is not a safetensors file"),
    ("web page", resized(lambda given: b"<!DOCTYPE html><html>not found</html>"), r"is not a safetensors file"),
    ("pickle", pickled, r"holds no model\.safetensors .* but pytorch_model\.bin, which reval does not read"),
    ("gguf", only_gguf, r"but model-q4_k_m\.gguf, which reval does not read; save the model with save_pretrained"),
    ("adapters", adapters, r"adapter_config\.json: model\.path: the directory holds adapters; merge them"),
    (
        "lost shard",
        lost_shard,
        r"index\.json: model\.path: names model-00002-of-00002\.safetensors, which is not in",
    ),
    ("cut shard", cut_shard, r"model-00001-of-00002\.safetensors: model\.path: is truncated"),
    ("promise", promised_tensor, r"says that model-00001-of-00002\.safetensors holds model\.layers\.2\.mlp"),
    ("index", index_of_another_kind, r"index\.json: model\.path: is not an index"),
]
"""Faults visible in the headers. Loading refuses them as well: it reads headers before weights."""


@pytest.mark.parametrize(("break_it", "words"), [one[1:] for one in BROKEN], ids=[one[0] for one in BROKEN])
def test_a_broken_model_is_refused_by_the_check_and_by_loading(directory, break_it, words):
    break_it(directory)
    for check in (lambda: check_model(settings(directory)), lambda: load_model(directory)):
        assert re.search(words, refusal(check))


def broken(value: float, dtype: torch.dtype) -> Callable[[Path], None]:
    def change(given: Tensors) -> Tensors:
        given = {name: one.to(dtype) for name, one in given.items()}
        given["model.layers.1.mlp.down_proj.weight"][3, 5] = value
        return given

    return lambda directory: change_weights(directory, change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("value", "words"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (float("-inf"), "infinity")]
)
def test_weights_that_are_not_finite_are_refused(directory, value, words, dtype):
    broken(value, dtype)(directory)
    said = refusal(lambda: check_model(settings(directory)))
    assert f"{WEIGHTS}: model.path: the weights hold {words}, first in model.layers.1.mlp.down_proj.weight" in said


def test_a_weight_file_is_read_once_and_again_when_it_changes(directory):
    check_model(settings(directory))
    before = _first_fault.cache_info()
    check_model(settings(directory))
    assert _first_fault.cache_info().misses == before.misses
    broken(float("nan"), torch.float32)(directory)
    assert "the weights hold NaN" in refusal(lambda: check_model(settings(directory)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "is quantized by awq"),
        ({"quantization_config": {"load_in_4bit": True}}, "is quantized by bitsandbytes"),
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantized by fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "is quantized by compressed-tensors"),
        ({"quantization_config": {"quant_method": "made up"}}, "is quantized by made up"),
        ({"model_type": "no such thing"}, "no model to load"),
        ({"model_type": None}, "no model to load"),
        ({"hidden_size": "wide"}, "model.path:"),
        ({"num_attention_heads": 0}, "model.path:"),
        ({"hidden_size": 48}, "by config.json"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "ForSequenceClassification is not a causal language",
        ),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "no causal language model"),
    ],
    ids=str,
)
def test_a_config_that_describes_another_kind_of_model_is_refused(directory, changes, words):
    change_config(directory, **changes)
    said = refusal(lambda: check_model(settings(directory)))
    assert words in said
    assert str(directory) in said


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"a": 1}', "\ufeff{}"], ids=repr)
def test_an_invalid_config_file_is_refused(directory, text):
    (directory / "config.json").write_text(text)
    assert "model.path: no model to load" in refusal(lambda: check_model(settings(directory)))


def test_weights_stored_as_integers_are_refused_as_quantized(directory):
    packed_integers(directory)
    said = refusal(lambda: check_model(settings(directory)))
    assert "model.layers.0.mlp.up_proj.weight is stored as I8: the weights are quantized" in said


def test_an_encoder_is_refused_although_it_loads(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 18, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    for kind in (transformers.BertLMHeadModel, transformers.BertForMaskedLM):
        model = kind(transformers.BertConfig(**sizes, num_hidden_layers=1))
        save_model(model, make_tiny_tokenizer(TINY.characters), tmp_path / kind.__name__)
        said = refusal(lambda: check_model(settings(tmp_path / kind.__name__)))  # noqa: B023
        assert f"{kind.__name__} is not a causal language model" in said


def test_a_path_that_is_not_a_directory_is_refused(directory):
    for path in (directory / WEIGHTS, directory / "tokenizer.json", directory / "nowhere"):
        assert "model.path:" in refusal(lambda: check_model(settings(path)))  # noqa: B023


def test_an_uncached_model_on_the_hub_is_refused_without_a_network():
    assert "model.path: no model to load" in refusal(lambda: check_model(Model(path="someone/some-model")))


def test_the_cached_files_of_a_model_on_the_hub_are_checked(directory, tmp_path, monkeypatch):
    without("lm_head")(directory)
    cached = tmp_path / "hub" / "models--someone--some-model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("1" * 40)
    shutil.copytree(directory, cached / "snapshots" / ("1" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = Model(path="someone/some-model")
    assert "someone/some-model: model.path: the weights are not those" in refusal(lambda: check_model(model))
    (cached / "snapshots" / ("1" * 40) / WEIGHTS).unlink()
    check_model(model)  # the weights are downloaded and checked when they are loaded


def tied(directory: Path) -> None:
    without("lm_head")(directory)
    change_config(directory, tie_word_embeddings=True)


def more_rows(directory: Path) -> None:
    model = load_model(directory)
    model.resize_token_embeddings(32)
    model.save_pretrained(directory)


def old_rotary_buffers(directory: Path) -> None:
    change_weights(directory, lambda given: given | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})


def halved(directory: Path) -> None:
    change_weights(directory, lambda given: {name: one.bfloat16() for name, one in given.items()})


@pytest.mark.parametrize("change", [lambda directory: None, tied, more_rows, old_rotary_buffers, halved, shard])
def test_an_unusual_but_valid_model_is_accepted(directory, change):
    change(directory)
    check_model(settings(directory))
    model = load_model(directory)
    if change is tied:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


SMALL_SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "tied": (transformers.Qwen2Config, {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    "keys without a prefix": (transformers.GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2}),
    "fused experts": (transformers.MixtralConfig, {"num_local_experts": 4, "num_key_value_heads": 2}),
}


def family(name: str, directory: Path) -> None:
    kind, own = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(kind(**(SMALL_SIZES | own)))
    save_model(model, make_tiny_tokenizer(TINY.characters), directory)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_with_other_parameter_names_on_disk_is_accepted(tmp_path, name):
    family(name, tmp_path)
    if name == "keys without a prefix":  # as the original GPT-2 was published, with masks stored among the weights
        change_weights(
            tmp_path, lambda given: {key.removeprefix("transformer."): one for key, one in given.items()}
        )
        change_weights(tmp_path, lambda given: given | {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)})
    check_model(settings(tmp_path))
    load_model(tmp_path)


def test_a_missing_expert_is_reported(tmp_path):
    family("fused experts", tmp_path)
    without("layers.1.block_sparse_moe.experts.2.w1")(tmp_path)
    for check in (lambda: check_model(settings(tmp_path)), lambda: load_model(tmp_path)):
        assert re.search("cannot be merged .*one of several experts is missing", refusal(check))


CASES = Path(__file__).parents[4] / "shared" / "cases" / "make_models.py"
NEEDS_CASES = pytest.mark.skipif(not CASES.exists(), reason="the shared cases are not beside the project")
REFUSED = {
    "origmod": r"missing lm_head\.weight, .*; unexpected _orig_mod\.lm_head\.weight",
    "nohead": r"missing lm_head\.weight;",
    "lfs": r"is a git-lfs pointer",
    "cut": r"is truncated: it has 188,588 bytes",
    "mismatch": r"mlp\.down_proj\.weight \(64 × 128 in the weights, 64 × 256 by config\.json\)",
    "nan": r"the weights hold NaN, first in model\.layers\.1\.mlp\.down_proj\.weight",
    "gptq": r"is quantized by gptq",
    "bigpad": r"the tokenizer's pad_token '\[PAD\]' has the id 90, but the embeddings have 90 rows",
}
TRAINED = {"base", "eoslist"}
ABOUT_PROMPTS = {"addeos", "nosystem", "dated"}


@pytest.fixture(scope="module")
def shared_cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, Path]:
    specification = importlib.util.spec_from_file_location("make_models", CASES)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    base = tmp_path_factory.mktemp("cases") / "base"
    module.make_base(base)
    return module, base


@NEEDS_CASES
def test_every_shared_case_is_known_here(shared_cases):
    cases = {case.__name__ for case in shared_cases[0].CASES} | {"base"}
    assert cases == REFUSED.keys() | TRAINED | ABOUT_PROMPTS


@NEEDS_CASES
@pytest.mark.parametrize("name", sorted(REFUSED.keys() | TRAINED))
def test_train_eval_and_import_refuse_or_accept_the_same_shared_cases(shared_cases, tmp_path, name):
    module, base = shared_cases
    directory = Path(shutil.copytree(base, tmp_path / name))
    if name != "base":
        getattr(module, name)(directory)
    values = {**SMALL, "model": {"path": str(directory)}}
    config, responses = tmp_path / "case.yaml", tmp_path / "responses.jsonl"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    responses.write_text('{"problem": "1+1=", "gold": "2", "response": "2"}\n')
    asked = ["benchmarks=[{arithmetic: {digits: 1}}]", "prompt={user: '{problem}'}", "max_tokens=4"]
    ways = {
        "train": lambda: prepare(config, [], tmp_path / "run"),
        "eval": lambda: prepare_evaluation(str(directory), None, asked, None, tmp_path / "eval"),
        "import": lambda: import_file(responses, config, [], tmp_path / "import", (), False),
    }
    if name in TRAINED:
        ways["train"]()
        ways["eval"]()
        return
    said = [refusal(way) for way in ways.values()]
    assert [one for one in said if not re.search(REFUSED[name], one)] == []
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "import").exists()
