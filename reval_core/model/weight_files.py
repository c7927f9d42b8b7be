"""The contents of a model's weight files, read from their headers only: milliseconds, even for 100 GB."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from reval_core.errors import InputError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_ADAPTERS = "adapter_config.json"
_LFS_POINTER = b"version https://git-lfs"
_LONGEST_HEADER = 100_000_000
"""The size in bytes of the longest header that safetensors reads."""
_OTHER_FORMATS = {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a weight file."""

    file: Path
    dtype: str
    """As safetensors names it: F32, BF16, I8, …"""
    shape: tuple[int, ...]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The tensors that transformers would load from a directory, by name.

    Raises:
        InputError: There are none, or a file does not match its header or the index; names the file.
    """
    if (directory / _ADAPTERS).exists():
        raise InputError(
            f"{directory / _ADAPTERS}: model.path: the directory holds adapters; merge them into their base "
            "(peft: merge_and_unload), save that, and train it"
        )
    try:
        if (directory / WHOLE).is_file():
            return _tensors(directory / WHOLE)
        if (directory / INDEX).is_file():
            return _sharded_tensors(directory / INDEX)
        others = sorted(path.name for path in directory.iterdir() if path.suffix in _OTHER_FORMATS)
    except OSError as error:
        raise InputError(f"{directory}: model.path: the weights cannot be read ({error})") from error
    instead = f" but {', '.join(others[:3])}, which reval does not read" if others else ""
    raise InputError(
        f"{directory}: model.path: holds no {WHOLE} and no {INDEX}{instead}; save the model with save_pretrained"
    )


def is_complete(directory: Path) -> bool:
    """Whether all weight files exist, which is not certain for a model in the Hub's cache."""
    if (directory / WHOLE).is_file():
        return True
    index = directory / INDEX
    return index.is_file() and all((directory / file).is_file() for file in _weight_map(index).values())


def _sharded_tensors(index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    files = sorted(set(weight_map.values()))
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise InputError(
            f"{index}: model.path: names {absent[0]}{more}, which is not in the directory; download the model again"
        )
    found: dict[str, StoredTensor] = {}
    for file in files:
        found |= _tensors(index.parent / file)
    for name, file in weight_map.items():
        if name not in found:
            raise InputError(
                f"{index}: model.path: says that {file} holds {name}, which it does not; the files belong to "
                "different models: download it again"
            )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index}: model.path: is not an index, a JSON object whose weight_map names the file of each tensor; "
            "download the model again"
        ) from error
    return dict(weight_map)


def _tensors(file: Path) -> dict[str, StoredTensor]:
    _check_size(file)
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            return {
                name: StoredTensor(file, tensor.get_dtype(), tuple(tensor.get_shape()))
                for name, tensor in slices.items()
            }
    except SafetensorError as error:
        raise InputError(
            f"{file}: model.path: is not a safetensors file ({error}); download it or save the model again"
        ) from error


def _check_size(file: Path) -> None:
    """Raise InputError for a file that holds no weights, or fewer bytes than its header describes."""
    size = file.stat().st_size
    if not size:
        raise InputError(f"{file}: model.path: is empty; download it again")
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InputError(
                f"{file}: model.path: is a git-lfs pointer of {size} bytes, not weights; fetch them (git lfs pull)"
            )
        opened.seek(0)
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length <= _LONGEST_HEADER else b""
    described = 8 + length + _data_bytes(header) if len(header) == length else 8 + length
    if size < described and length <= _LONGEST_HEADER:
        raise InputError(
            f"{file}: model.path: is truncated: it has {size:,} bytes, but its header describes {described:,}; "
            "download it again"
        )


def _data_bytes(header: bytes) -> int:
    """The bytes that a header describes; 0 if it cannot be read, since safetensors reports the fault."""
    try:
        entries = json.loads(header)
        return max(
            (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return 0
