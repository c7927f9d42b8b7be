"""Token ids: which of them end a text, and whether the embeddings have a row for each id of the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval_core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMED = ("pad_token", "eos_token", "bos_token", "unk_token")


def model_ends(path: str) -> dict[int, str]:
    """The tokens that end a text according to the model's own files, and the file that names each.

    Defaults of transformers are not included, since they belong to no particular tokenizer.

    Raises:
        InputError: A file is not a JSON object, or an id is not an integer.
    """
    found: dict[int, str] = {}
    for file in ("config.json", "generation_config.json"):
        values = _json(path, file)
        for section in (values, values.get("text_config")):
            found |= dict.fromkeys(_ids(path, file, section), file)
    return found


def check_vocabulary(source: str, tokenizer: PreTrainedTokenizerBase, rows: int, ends: Mapping[int, str]) -> None:
    """Check that every token has a row in the embeddings.

    Args:
        source: The model's directory or name, for messages.
        tokenizer: The tokenizer.
        rows: The number of rows of the embeddings.
        ends: The result of `model_ends`.

    Raises:
        InputError: Names the token, its id and the number of rows.
    """
    vocabulary = tokenizer.get_vocab()
    named = {one: getattr(tokenizer, f"{one}_id") for one in _NAMED}
    ids = {f"the tokenizer's {one} {getattr(tokenizer, one)!r}": token for one, token in named.items()}
    if vocabulary:
        last = max(vocabulary, key=vocabulary.__getitem__)
        ids[f"the tokenizer's token {last!r}"] = vocabulary[last]
    ids |= {f"eos_token_id in {file}": token for token, file in ends.items()}
    for description, token in ids.items():
        if token is not None and not 0 <= token < rows:
            raise InputError(
                f"{source}: model.path: {description} has the id {token}, but the embeddings have {rows} rows; "
                "use the tokenizer that belongs to the model, or add rows (resize_token_embeddings) and save both"
            )


def _json(path: str, file: str) -> dict[str, Any]:
    """Read a file of a model; empty where it does not exist, since models need not have both."""
    from transformers.utils import cached_file

    try:
        found = cached_file(path, file)
    except OSError:
        return {}
    try:
        values = json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{found}: model.path: is not valid JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{found}: model.path: does not hold a JSON object; download it again")
    return values


def _ids(path: str, file: str, section: Any) -> list[int]:
    value = section.get("eos_token_id") if isinstance(section, dict) else None
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(one) is int for one in ids):
        raise InputError(f"{path}: model.path: {file}: eos_token_id: {value!r} is neither an id nor a list of ids")
    return ids
