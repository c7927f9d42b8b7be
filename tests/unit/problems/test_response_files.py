"""Files of responses: both formats, column mapping, and errors that name the row."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import GenerationConfig

from reval_core.engines.response import Response
from reval_core.errors import InputError
from reval_core.model.loading import load_tokenizer, make_tiny_tokenizer
from reval_core.problems.response_files import RESPONSE_FIELDS, read_responses
from reval_core.replay_buffer.imported import tokenise
from reval_core.replay_buffer.trajectories import response_table
from reval_core.rows import column_options
from tests.models import save_byte_level_model
from tests.runs import small_config


def read(path: Path, columns: Sequence[str] = ()) -> list[Response]:
    return read_responses(path, column_options(columns, RESPONSE_FIELDS), "all")


def jsonl(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def response(text: str, problem: str = "1+2=", gold: str | None = "3", reward: float | None = None) -> Response:
    return Response("p", problem, gold, "any", "stored", text=text, given_reward=reward, place="file:1")


def test_jsonl_and_parquet_give_the_same(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "1+2=", "response": "it is\u20283", "gold": "3", "reward": None},
        {"problem": "2+2=", "response": "5", "gold": None, "reward": -0.5},
        {"problem": "2+3=", "response": "5", "gold": "5", "reward": 1.0},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    from_jsonl = read(jsonl(tmp_path / "a.jsonl", rows[0], "", *rows[1:]))
    from_parquet = read(tmp_path / "a.parquet")
    assert [(one.problem, one.text, one.gold, one.given_reward) for one in from_jsonl] == [
        tuple(row[field] for field in RESPONSE_FIELDS.names) for row in rows
    ]
    assert [one.text for one in from_parquet] == [one.text for one in from_jsonl]
    assert from_jsonl[1].place == f"{tmp_path}/a.jsonl:3", "empty lines are counted"
    assert from_parquet[1].place == f"{tmp_path}/a.parquet: row 2"


def test_columns_may_have_other_names_and_values_that_mean_the_same(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"problem": "1+2=", "completion": "3", "answer": 3, "label": True})
    (found,) = read(path, ["response=completion", "gold=answer", "reward=label"])
    assert (found.text, found.gold, found.given_reward) == ("3", "3", 1.0)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("response", "--column response: must look like response=NAME; the fields are problem, response, gold"),
        ("response=", "must look like"),
        ("respnse=x", "'respnse' is not a field of a row; did you mean 'response'?"),
        ("source=x", "'source' is not a field of a row"),
    ],
)
def test_an_invalid_column_mapping_is_refused(option: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        column_options([option], RESPONSE_FIELDS)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"problem": "1+2=", "gold": "3"}, "response: is missing"),
        ({"response": "3", "gold": "3"}, "problem: is missing"),
        ({"problem": "1+2=", "response": "3"}, "gold: is missing, and reward as well; give one of them"),
        ({"problem": "1+2=", "response": "3", "gold": ""}, "gold: is missing, and reward as well"),
        ({"problem": "1+2=", "response": "3", "gold": {"a": 3}}, "gold: must be text or a number, not dict"),
        ({"problem": "1+2=", "response": "3", "reward": "good"}, "reward: must be a number, not 'good'"),
        ('{"problem": "1+2=", "response": "3", "reward": NaN}', "reward: must be a number, not nan"),
        ('{"problem": ', "is not JSON"),
        ("[1, 2]", "not a JSON object; write "),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any] | str, words: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"problem": "1+2=", "response": "3", "gold": "3"}, row)
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:2: {words}")
    assert "\n" not in str(error.value)


def test_a_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    rows = {"problem": ["a"] * 9, "response": ["b"] * 8 + [None], "gold": ["c"] * 9}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(InputError, match=r"a\.parquet: row 9: response: is missing"):
        read(tmp_path / "a.parquet")


def test_a_file_without_responses_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "answer": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(
        InputError,
        match=r"has no column for the problem; it has 'text', 'answer': specify it with --column problem=",
    ):
        read(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="contains no rows"):
        read(jsonl(tmp_path / "a.jsonl"))
    (tmp_path / "b.parquet").write_text("no such thing")
    with pytest.raises(InputError, match=r"b\.parquet: cannot be read as Parquet"):
        read(tmp_path / "b.parquet")


def test_responses_end_with_the_end_of_sequence_token_once() -> None:
    config = small_config()
    tokenizer = make_tiny_tokenizer("0123456789+=")
    material = tokenise([response("3"), response("4</s>")], config, tokenizer)
    end, three, four = tokenizer.eos_token_id, *tokenizer.encode("34")
    assert [row.tokens for row in material.responses] == [[three, end], [four, end]]
    assert [row.text for row in material.responses] == ["3", "4"]
    assert material.responses[0].prompt_tokens == tokenizer.encode("1+2=")


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level model with end-of-turn and end-of-text tokens, as chat models have."""
    directory = tmp_path_factory.mktemp("chatting")
    save_byte_level_model(directory)
    tokenizer = load_tokenizer(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(directory)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    GenerationConfig(eos_token_id=ends).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("text", "said", "end", "cut"),
    [
        ("so 3", "so 3", "eos", 0),
        ("so 3<|im_end|>", "so 3", "<|im_end|>", 0),
        ("so 3<|im_end|>\n", "so 3", "<|im_end|>", 0),
        ("so 3<|im_end|>EOSEOS", "so 3", "<|im_end|>", 0),
        ("so 3EOS and on<|im_end|>", "so 3", "eos", 1),
        ("so 3<|im_end|>\n<|im_start|>user\nNext?", "so 3", "<|im_end|>", 1),
        ("it is <|im_start|> 3", "it is <|im_start|> 3", "eos", 0),
    ],
)
def test_a_response_ends_at_the_first_token_that_ends_a_text(
    chatting: Path, text: str, said: str, end: str, cut: int
) -> None:
    tokenizer = load_tokenizer(chatting)
    config = small_config(model={"path": str(chatting)}, rollouts__max_tokens=60)
    material = tokenise([response(text.replace("EOS", tokenizer.eos_token))], config, tokenizer)
    (row,) = material.responses
    last = tokenizer.eos_token_id if end == "eos" else tokenizer.convert_tokens_to_ids(end)
    assert (row.text, material.cut, material.empty) == (said, cut, 0)
    assert row.tokens[-1] == last
    assert tokenizer.decode(row.tokens[:-1]) == said
    special = set(tokenizer.all_special_ids)
    assert not special & set(row.tokens[:-1]), "what else it spells is characters"


@pytest.mark.parametrize("nothing", ["", "  \n", "</s>", " </s> 5"])
def test_an_empty_response_is_skipped_and_counted(nothing: str) -> None:
    tokenizer = make_tiny_tokenizer("0123456789+=")
    material = tokenise([response("3"), response(nothing), response("4")], small_config(), tokenizer)
    assert [row.text for row in material.responses] == ["3", "4"]
    assert material.counts == {"too_long": 0, "empty": 1, "cut": 0}
    with pytest.raises(InputError, match="file:1: this response and all after it are empty or too long"):
        tokenise([response(nothing)], small_config(), tokenizer)


def test_special_tokens_that_no_tokenizer_spells_are_refused_by_row() -> None:
    with pytest.raises(
        InputError, match="file:1: the response contains characters that the model's tokenizer has no"
    ):
        tokenise([response("<s>3")], small_config(), make_tiny_tokenizer("0123456789+="))


def test_too_long_responses_are_skipped_and_counted() -> None:
    config = small_config(rollouts__max_tokens=4)
    responses = [response("333"), response("3333"), response("3", problem="1" * 300)]
    material = tokenise(responses, config, make_tiny_tokenizer("0123456789+="))
    assert [row.text for row in material.responses] == ["333"], "three tokens and the end make four"
    assert material.too_long == 2, "one by rollouts.max_tokens, one by the model's context of 256"
    with pytest.raises(InputError, match="this response and all after it are empty or too long"):
        tokenise(responses[1:], config, make_tiny_tokenizer("0123456789+="))


@pytest.mark.parametrize(("text", "problem", "field"), [("x", "1+2=", "response"), ("3", "x+2=", "problem")])
def test_characters_without_a_token_are_refused_and_not_learned_as_padding(
    text: str, problem: str, field: str
) -> None:
    with pytest.raises(
        InputError, match=f"file:1: the {field} (holds|contains) characters that the model's tokenizer has no"
    ):
        tokenise([response(text, problem)], small_config(), make_tiny_tokenizer("0123456789+="))


def test_the_policy_that_wrote_an_imported_response_is_unknown() -> None:
    given = [response("3", gold=None, reward=0.5), response("45")]
    tokenizer = make_tiny_tokenizer("0123456789+=")
    imported = tokenise(given, small_config(), tokenizer)
    shard = {"round": 0, "shard": 1, "first_id": 256, "policy": "unknown", "engine": "import", "temperature": None}
    first, second = response_table(imported.responses, tokenizer, **shard).to_pylist()
    unknown = ("seed", "temperature", "engine_logprobs", "policy_rounds", "gold")
    assert [first[name] for name in unknown] == [None] * 5
    assert (first["policy"], first["engine"], first["finish_reason"]) == ("unknown", "import", "stop")
    assert (first["trajectory_id"], first["round"], first["shard"], first["row"]) == (256, 0, 1, 0)
    assert (first["given_reward"], second["given_reward"], second["gold"]) == (0.5, None, "3")
    assert (second["problem_set"], second["gold_mode"]) == ("stored", "any")
    assert (first["prompt_id"], first["sample"], second["sample"]) == (second["prompt_id"], 0, 1)
    assert (second["prompt_length"], second["response_length"], second["loss_mask"]) == (4, 3, [True] * 3)
