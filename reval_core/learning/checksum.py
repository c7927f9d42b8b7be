"""A checksum of weights that the device they lie on adds up: whether two learners hold the same bits.

Each number's bits are multiplied by a hash of its place and added up modulo 2^64. Addition of whole numbers has no
order, so a CPU, a GPU and any number of threads give the same sum, and a change of any one bit changes it. It finds
differences that nobody made on purpose; files are proved by sha256. This file needs torch alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_SLICE = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Numbers that are added up at once: on a CPU what its cache holds, on a GPU what is worth a kernel."""

_STEP = -0x61C8864680B583EB
"""The step of splitmix64, as a signed number."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number, what its bits are read as."""


@torch.no_grad()
def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """64 hexadecimal digits of tensors by name: the same for the same names, shapes and bits."""
    sink = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sink.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {int(_sum(tensor))}\n".encode())
    return sink.hexdigest()


def _sum(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().flatten().view(_BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    size = _SLICE.get(tensor.device.type, 1 << 18)
    for first in range(0, len(flat), size):
        bits = flat[first : first + size].long()
        total += bits.mul_(_of_places(first, len(bits), tensor.device)).sum()
    return total


def _of_places(start: int, count: int, device: torch.device) -> Tensor:
    """[count] odd int64: a hash of each place. An odd factor lets no bit vanish."""
    places = torch.arange(start, start + count, device=device).mul_(_STEP)
    return places.bitwise_xor_(places >> 31).mul_(_STEP).bitwise_or_(1)
