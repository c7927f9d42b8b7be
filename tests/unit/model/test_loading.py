"""Models on disk: faults are refused by name, and digests distinguish weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from reval_core.config import Lora, Model
from reval_core.errors import InputError
from reval_core.model.loading import (
    check_model,
    count_parameters,
    load_model,
    load_tokenizer,
    make_tiny_tokenizer,
    policy_digest,
    save_model,
    stop_ids,
)
from tests.models import TINY, tiny_model


@pytest.fixture
def directory(tmp_path):
    save_model(tiny_model(), make_tiny_tokenizer(TINY.characters), tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_loads_bit_for_bit(directory):
    assert policy_digest(load_model(directory)) == policy_digest(tiny_model())
    assert policy_digest(load_model(directory)) != policy_digest(tiny_model(seed=1))


def test_attention_is_the_configured_one(directory):
    assert (
        load_model(directory, Model(path=str(directory), attention="eager")).config._attn_implementation == "eager"
    )
    assert load_model(directory, Model(path=str(directory))).config._attn_implementation == "sdpa"


@pytest.mark.skipif(torch.cuda.is_available(), reason="FlashAttention may be there")
def test_an_attention_that_is_not_installed_is_refused_before_weights_are_read(directory):
    with pytest.raises(InputError, match=r"model\.attention: flash_attention_2 cannot be used"):
        count_parameters(Model(path=str(directory), attention="flash_attention_2"))


def test_one_changed_bit_changes_the_digest():
    model = tiny_model()
    before = policy_digest(model)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    assert policy_digest(model) != before


def test_the_tokenizer_has_one_token_per_character(directory):
    tokenizer = load_tokenizer(directory)
    tokens = tokenizer.encode("12+34=")
    assert len(tokens) == 6
    assert tokenizer.decode([*tokens, tokenizer.eos_token_id], skip_special_tokens=True) == "12+34="


def test_a_directory_without_a_tokenizer_is_refused(directory):
    for file in directory.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        InputError, match=r"model\.path: no tokenizer to load .*save the model's tokenizer"
    ) as refusal:
        check_model(Model(path=str(directory)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_a_tokenizer_without_a_needed_token_is_refused(directory, name):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    setattr(tokenizer, name, None)
    tokenizer.save_pretrained(directory)
    with pytest.raises(InputError, match=rf"model\.path: the tokenizer has no {name}; set it"):
        check_model(Model(path=str(directory)))


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.path: no model to load"):
        check_model(Model(path=str(tmp_path)))


def test_pickled_weights_are_not_read(directory):
    (directory / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"holds no model.safetensors .* but pytorch_model.bin, which reval does not"
    ):
        load_model(directory)


def test_parameters_are_counted_without_weights(directory):
    expected = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert count_parameters(Model(path=str(directory))) == (expected, expected)
    assert count_parameters(Model(tiny=TINY)) == (expected, expected)
    adapted = count_parameters(Model(tiny=TINY, lora=Lora(rank=2)))
    assert adapted[0] == expected
    assert 0 < adapted[1] < expected / 4


@pytest.mark.parametrize(
    ("target", "words"), [("nowhere", "nowhere"), ("lm_head", "the head cannot have adapters")]
)
def test_invalid_adapter_targets_are_refused_before_work_begins(target, words):
    with pytest.raises(InputError, match=rf"model\.lora\.targets: .*{words}"):
        count_parameters(Model(tiny=TINY, lora=Lora(targets=(target,))))


def test_a_response_ends_at_the_tokenizers_the_models_and_the_runs_own_tokens(directory):
    tokenizer = load_tokenizer(directory)
    settings = Model(path=str(directory))
    assert stop_ids(settings, tokenizer, ()) == (tokenizer.eos_token_id,)
    equals, plus = (tokenizer.convert_tokens_to_ids(one) for one in "=+")
    GenerationConfig(eos_token_id=[tokenizer.eos_token_id, equals]).save_pretrained(directory)
    assert stop_ids(settings, tokenizer, ("+",)) == tuple(sorted((tokenizer.eos_token_id, equals, plus)))


def test_a_stop_of_several_tokens_is_refused(directory):
    with pytest.raises(InputError, match=r"rollouts\.stop: '1\+' is 2 tokens"):
        stop_ids(Model(path=str(directory)), load_tokenizer(directory), ("1+",))
