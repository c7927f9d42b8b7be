"""Check the weights of a model for NaN and infinity: the only check that reads them, once per process."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

from reval_core.errors import InputError

_CHECKED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_finite(files: Iterable[Path]) -> None:
    """Check that weight files hold no NaN or infinity.

    A file is read again only when its size or modification time has changed.

    Raises:
        InputError: Names the first such parameter and its file.
    """
    for file in files:
        status = file.stat()
        fault = _first_fault(file, status.st_size, status.st_mtime_ns)
        if fault is not None:
            name, value = fault
            raise InputError(
                f"{file}: model.path: the weights hold {value}, first in {name}; a model with {value} cannot be "
                "trained: use an earlier checkpoint of it"
            )


@cache
def _first_fault(file: Path, size: int, written: int) -> tuple[str, str] | None:
    """The name of the first tensor that is not finite, and the value it holds."""
    with safe_open(file, framework="pt") as opened:
        for name in opened.offset_keys():
            tensor = opened.get_tensor(name)
            if tensor.dtype in _CHECKED and tensor.numel():
                # Minimum and maximum propagate NaN and allocate nothing as large as the tensor.
                lowest, highest = torch.aminmax(tensor)
                if lowest.isnan():
                    return name, "NaN"
                if lowest.isinf() or highest.isinf():
                    return name, "infinity"
    return None
