"""Ends of text, and token ids without a row in the embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from reval_core.config import Model
from reval_core.errors import InputError
from reval_core.model.loading import check_model, load_tokenizer, make_tiny_tokenizer, save_model, stop_ids
from tests.models import TINY, tiny_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(tiny_model(), make_tiny_tokenizer(TINY.characters), tmp_path / "model")
    return tmp_path / "model"


def write(directory: Path, file: str, **values: object) -> None:
    path = directory / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | values))


def ends(directory: Path) -> tuple[int, ...]:
    return stop_ids(Model(path=str(directory)), load_tokenizer(directory))


def refused(directory: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_model(Model(path=str(directory)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_ends_are_those_of_the_tokenizer_and_of_both_files(directory):
    assert ends(directory) == (2,)
    write(directory, "config.json", eos_token_id=[2, 5])
    assert ends(directory) == (2, 5)
    write(directory, "generation_config.json", eos_token_id=7)
    assert ends(directory) == (2, 5, 7)
    (directory / "config.json").write_text(
        json.dumps(json.loads((directory / "config.json").read_text()) | {"eos_token_id": None})
    )
    assert ends(directory) == (2, 7)


def test_a_default_end_of_transformers_is_not_used(directory):
    """LlamaConfig's default is 2, which is a letter in many tokenizers."""
    values = json.loads((directory / "config.json").read_text())
    del values["eos_token_id"]
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "generation_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.eos_token = "9"
    tokenizer.save_pretrained(directory)
    assert ends(directory) == (tokenizer.convert_tokens_to_ids("9"),)


def test_the_ends_of_a_composite_model_are_those_of_its_language_part(directory):
    write(directory, "config.json", text_config={"eos_token_id": [4]})
    assert 4 in ends(directory)


@pytest.mark.parametrize("name", ["pad_token", "eos_token", "bos_token"])
def test_a_token_without_a_row_is_refused_by_name(directory, name):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({name: "[NEW]"})
    tokenizer.save_pretrained(directory)
    assert f"the tokenizer's {name} '[NEW]' has the id 18, but the embeddings have 18 rows" in refused(directory)


def test_an_added_token_without_a_row_is_refused(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(directory)
    assert "the tokenizer's token '</think>' has the id 19, but the embeddings have 18 rows" in refused(directory)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_without_a_row_is_refused_naming_its_file(directory, file):
    write(directory, file, eos_token_id=[2, 151643])
    assert f"eos_token_id in {file} has the id 151643, but the embeddings have 18 rows" in refused(directory)


@pytest.mark.parametrize("text", ["{", "[2]"])
def test_a_generation_config_that_is_not_a_json_object_is_refused(directory, text):
    (directory / "generation_config.json").write_text(text)
    assert "generation_config.json: model.path:" in refused(directory)


def test_an_end_that_is_not_an_integer_is_refused(directory):
    write(directory, "generation_config.json", eos_token_id="</s>")
    assert "generation_config.json: eos_token_id: '</s>' is neither an id" in refused(directory)
