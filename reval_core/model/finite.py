"""NaN and infinity in a model's weights: the one check that reads them, once in a process."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

from reval_core.errors import InputError

_CHECKED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_finite(files: Iterable[Path]) -> None:
    """Raise InputError naming the first parameter that holds NaN or infinity, and its file.

    A file is read again only when its size or its time of writing has changed.
    """
    for file in files:
        status = file.stat()
        found = _first_fault(file, status.st_size, status.st_mtime_ns)
        if found is not None:
            name, value = found
            raise InputError(
                f"{file}: model.path: the weights hold {value}, first in {name}; a model that gives {value} learns "
                "nothing: take an earlier checkpoint of it"
            )


@cache
def _first_fault(file: Path, size: int, written: int) -> tuple[str, str] | None:
    """The first tensor that is not finite, and what it holds."""
    with safe_open(file, framework="pt") as opened:
        for name in opened.offset_keys():
            tensor = opened.get_tensor(name)
            if tensor.dtype in _CHECKED and tensor.numel():
                # NaN passes through minimum and maximum, and nothing as large as the tensor is made.
                lowest, highest = torch.aminmax(tensor)
                if lowest.isnan():
                    return name, "NaN"
                if lowest.isinf() or highest.isinf():
                    return name, "infinity"
    return None
