"""Token ids: which of them end a text, and whether the model has a row for each that its tokenizer can give."""

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
    """The tokens that end a text by a model's own files, and the file that names each.

    What a file does not say is left out: transformers' defaults belong to no tokenizer in particular.
    Raises InputError if a file is no JSON object, or if an id is no number.
    """
    found: dict[int, str] = {}
    for file in ("config.json", "generation_config.json"):
        values = _json(path, file)
        for section in (values, values.get("text_config")):
            found |= dict.fromkeys(_ids(path, file, section), file)
    return found


def check_vocabulary(place: str, tokenizer: PreTrainedTokenizerBase, rows: int, ends: Mapping[int, str]) -> None:
    """See that every token has a row in the embeddings. Raises InputError naming the token, its id and the rows."""
    vocabulary = tokenizer.get_vocab()
    named = {one: getattr(tokenizer, f"{one}_id") for one in _NAMED}
    ids = {f"the tokenizer's {one} {getattr(tokenizer, one)!r}": token for one, token in named.items()}
    if vocabulary:
        last = max(vocabulary, key=vocabulary.__getitem__)
        ids[f"the tokenizer's token {last!r}"] = vocabulary[last]
    ids |= {f"eos_token_id in {file}": token for token, file in ends.items()}
    for what, token in ids.items():
        if token is not None and not 0 <= token < rows:
            raise InputError(
                f"{place}: model.path: {what} has the id {token}, and the embeddings have {rows} rows; take the "
                "tokenizer that belongs to the model, or add rows (resize_token_embeddings) and save both"
            )


def _json(path: str, file: str) -> dict[str, Any]:
    """A file of a model's folder or of the hub; nothing where there is none, since models need not have both."""
    from transformers.utils import cached_file

    try:
        found = cached_file(path, file)
    except OSError:
        return {}
    try:
        values = json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{found}: model.path: is no JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{found}: model.path: holds no JSON object; download it again")
    return values


def _ids(path: str, file: str, section: Any) -> list[int]:
    value = section.get("eos_token_id") if isinstance(section, dict) else None
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(one) is int for one in ids):
        raise InputError(f"{path}: model.path: {file}: eos_token_id: {value!r} is no id and no list of ids")
    return ids
