"""A checksum of weights, computed on their own device: whether two learners hold the same bits.

The bits of each element are multiplied by a hash of its index and summed modulo 2^64. Integer addition does not
depend on the order, so a CPU, a GPU and any number of threads give the same sum, and a change of any one bit
changes it. It detects accidental differences; files are verified by sha256. This module depends only on torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_SLICE = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Elements summed at once: on a CPU as many as fit its cache, on a GPU enough for an efficient kernel."""

_STEP = -0x61C8864680B583EB
"""The increment of splitmix64, as a signed integer."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type that the bits are read as, by the size of an element in bytes."""


@dataclass(frozen=True)
class Part:
    """Where a tensor belongs: consecutive elements of a larger one, or all of it."""

    shape: torch.Size
    """The shape of the whole tensor."""
    start: int = 0
    """The index of the first element in the whole tensor."""


@torch.no_grad()
def weights_checksum(
    weights: Mapping[str, Tensor],
    parts: Mapping[str, Part] | None = None,
    add: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> str:
    """64 hexadecimal digits that are equal for tensors with equal names, types, shapes and bits.

    Args:
        weights: The tensors by name.
        parts: For shards: the part of the whole tensor that each of `weights` is.
        add: For shards: adds the sums [tensors] of all processes that hold one.
    """
    parts = parts or {name: Part(tensor.shape) for name, tensor in weights.items()}
    named = sorted(weights.items())
    sums = add(torch.stack([_sum(tensor, parts[name].start) for name, tensor in named])).tolist() if named else []
    sink = hashlib.sha256()
    for (name, tensor), found in zip(named, sums, strict=True):
        sink.update(f"{name} {tensor.dtype} {tuple(parts[name].shape)} {found}\n".encode())
    return sink.hexdigest()


def _sum(tensor: Tensor, start: int) -> Tensor:
    flat = tensor.detach().contiguous().flatten().view(_BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    size = _SLICE.get(tensor.device.type, 1 << 18)
    for first in range(0, len(flat), size):
        bits = flat[first : first + size].long()
        total += bits.mul_(_index_hashes(start + first, len(bits), tensor.device)).sum()
    return total


def _index_hashes(start: int, count: int, device: torch.device) -> Tensor:
    """[count] odd int64: a hash of each index. Multiplication by an odd factor loses no bit."""
    hashes = torch.arange(start, start + count, device=device).mul_(_STEP)
    return hashes.bitwise_xor_(hashes >> 31).mul_(_STEP).bitwise_or_(1)
