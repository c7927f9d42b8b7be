"""The bfloat16 copy of float32 weights that a policy is: what runs forward and backward, is scored and generates.

An update is mostly smaller than the step to the next bfloat16 number. Rounded to the nearest, most of it would be
lost for the forward pass. Here each weight is rounded away from zero where its fraction between two neighbours
exceeds a threshold of its own, so that the mean over many weights is right. A threshold is a hash of (run seed,
parameter name, index in the whole tensor): it never changes, so unchanged weights give an unchanged copy, rounding
cancels between two policies of a run, and shards and other devices give the same bits.

The optimizer holds the float32 weights, here called masters. This file needs torch alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed, nn

_SLICE = 1 << 18
"""Weights that a CPU rounds at once: what its cache holds. A GPU rounds a whole tensor in one fused kernel."""

_STEP, _MIX_1, _MIX_2 = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""The constants of splitmix64, as signed numbers."""


def thresholds(key: int | Tensor, start: int, count: int, device: torch.device) -> Tensor:
    """[count] int64 from 0 to 65,535 for the elements from `start` on of the tensor that `key` names."""
    # splitmix64 of element ^ key. Not element * _STEP + key: torch.compile loses its top bits.
    mixed = torch.arange(start, start + count, device=device)
    mixed.bitwise_xor_(key).mul_(_STEP)
    mixed.bitwise_xor_(mixed >> 30).mul_(_MIX_1)
    mixed.bitwise_xor_(mixed >> 27).mul_(_MIX_2)
    return mixed.bitwise_right_shift_(48).bitwise_and_(0xFFFF)


def key_of(seed: int, name: str) -> int:
    """The key of the parameter `name` in a run of this seed, a signed number of 64 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big", signed=True)


def rounded(weights: Tensor, key: int | Tensor, start: int = 0) -> Tensor:
    """Float32 `weights` [n] as bfloat16: away from zero where the fraction, in 2^-16, exceeds its threshold."""
    # bfloat16 is float32 without its last 16 bits: adding 0xFFFF − t carries where they exceed t.
    below = thresholds(key, start, len(weights), weights.device).neg_().add_(0xFFFF).to(torch.int32)
    bits = weights.view(torch.int32).add(below).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)


@cache
def _fused() -> Callable[[Tensor, Tensor, int], Tensor]:
    """`rounded` as one kernel for tensors of all sizes: 6 bytes a weight are moved instead of about 150."""
    return torch.compile(rounded, dynamic=True)


@cache
def _key_on(device: torch.device, seed: int, name: str) -> Tensor:
    """The key as a tensor: a number would be compiled into the kernel. Kept: making one waits for the GPU."""
    return torch.tensor(key_of(seed, name), device=device)


@torch.no_grad()
def low_precision(weights: Tensor, seed: int, name: str, start: int = 0) -> Tensor:
    """The copy of the float32 parameter `name`, of the same shape, in a run of this seed.

    Of a shard, `start` is the index of its first element in the whole tensor; a shard holds consecutive elements.
    """
    flat = weights.detach().contiguous().flatten()
    if flat.is_cuda:
        return _fused()(flat, _key_on(flat.device, seed, name), start).view(weights.shape)
    key = key_of(seed, name)
    found = torch.empty_like(flat, dtype=torch.bfloat16)
    for first in range(0, len(flat), _SLICE):
        part = flat[first : first + _SLICE]
        found[first : first + _SLICE] = rounded(part, key, start + first)
    return found.view(weights.shape)


def round_weights(model: nn.Module, seed: int, device: torch.device | None = None) -> None:
    """Make the parameters of a float32 model their copy, on `device` if given; it never holds all in float32.

    Buffers stay as they are: positions need float32.
    """
    for name, parameter in model.named_parameters():
        parameter.data = low_precision(parameter.to(device), seed, name)


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """The parameters of a small part of a model in float32, for as long as the context lasts."""
    before = {one: one.data for one in module.parameters()}
    for parameter in before:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, data in before.items():
            parameter.data = data


def compute_in(model: nn.Module, precision: str, seed: int) -> None:
    """Let a model compute in `float32` or `bfloat16`: as what it is, or as its copy."""
    if precision == "float32":
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
    elif next(model.parameters()).dtype == torch.float32:
        round_weights(model, seed)


@torch.no_grad()
def assign(parameter: Tensor, name: str, weights: Tensor, seed: int) -> None:
    """Give `parameter` these float32 numbers or, where it is part of a copy, their copy."""
    if parameter.dtype == torch.bfloat16 and weights.dtype == torch.float32:
        weights = low_precision(weights.to(parameter.device), seed, name)
    parameter.copy_(weights)


class LowPrecisionCopy:
    """Makes a float32 model the copy of its weights, and keeps those of what is trained as `masters`.

    Gradients of the copy are added to the masters' in float32 as each of its parameters gets one, and do not stay.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.masters = {name: nn.Parameter(one.data) for name, one in self._parameters.items()}
        """The float32 weights by the name of their parameter, for an optimizer."""
        round_weights(model, seed)
        for name, parameter in self._parameters.items():
            parameter.register_post_accumulate_grad_hook(_adding_to(self.masters[name]))

    def refresh(self) -> None:
        """Round again, after the masters have changed."""
        for name, parameter in self._parameters.items():
            parameter.data.copy_(low_precision(self.masters[name], self._seed, name))

    def average_gradients(self) -> None:
        """Average the masters' gradients over the processes, in float32. Every process must ask."""
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            distributed.all_reduce(master.grad)
            master.grad /= distributed.get_world_size()

    @contextmanager
    def replaced_by_masters(self) -> Iterator[None]:
        """Let the model hold the masters themselves, to save or digest them. Nothing is copied."""
        copies = {name: one.data for name, one in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.data = self.masters[name].data
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = copies[name]


def _adding_to(master: Tensor) -> Callable[[Tensor], Any]:
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return add
