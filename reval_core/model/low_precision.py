"""The bfloat16 copy of float32 weights: the policy that computes forward and backward passes, scores and rollouts.

An update is usually smaller than the distance to the next bfloat16 number. With rounding to nearest, most of it
would be lost for the forward pass. Here each weight is rounded away from zero where its fraction between two
neighbours exceeds a threshold of its own, so the mean over many weights is unbiased. The threshold is a hash of
(run seed, parameter name, index in the whole tensor). It never changes, so unchanged weights give an unchanged
copy, rounding cancels between two policies of a run, and shards and other devices give the same bits.

The optimizer holds the float32 weights, called masters here. This module depends only on torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_SLICE = 1 << 18
"""Weights that a CPU rounds at once, to fit its cache. A GPU rounds a whole tensor in one fused kernel."""

_STEP, _MIX_1, _MIX_2 = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""The constants of splitmix64, as signed integers."""


def thresholds(key: int | Tensor, start: int, count: int, device: torch.device) -> Tensor:
    """The thresholds, [count] int64 from 0 to 65,535, of the elements from `start` of the tensor with this key."""
    # splitmix64 of element ^ key. Not element * _STEP + key: torch.compile loses its top bits.
    mixed = torch.arange(start, start + count, device=device)
    mixed.bitwise_xor_(key).mul_(_STEP)
    mixed.bitwise_xor_(mixed >> 30).mul_(_MIX_1)
    mixed.bitwise_xor_(mixed >> 27).mul_(_MIX_2)
    return mixed.bitwise_right_shift_(48).bitwise_and_(0xFFFF)


def key_of(seed: int, name: str) -> int:
    """The key of the parameter `name` in a run with this seed, a signed 64-bit integer."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big", signed=True)


def rounded(weights: Tensor, key: int | Tensor, start: int = 0) -> Tensor:
    """Round float32 weights [n] to bfloat16: away from zero where the fraction, in 2^-16, exceeds its threshold."""
    # bfloat16 is float32 without its last 16 bits, so adding 0xFFFF − t carries where they exceed t.
    below = thresholds(key, start, len(weights), weights.device).neg_().add_(0xFFFF).to(torch.int32)
    bits = weights.view(torch.int32).add(below).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)


@cache
def _fused() -> Callable[[Tensor, Tensor, int], Tensor]:
    """`rounded` as one kernel for all tensor sizes: it moves 6 bytes per weight instead of about 150."""
    return torch.compile(rounded, dynamic=True)


@cache
def _key_on(device: torch.device, seed: int, name: str) -> Tensor:
    """The key as a tensor, since an int would be compiled into the kernel. Cached: creating it syncs the GPU."""
    return torch.tensor(key_of(seed, name), device=device)


@torch.no_grad()
def low_precision(weights: Tensor, seed: int, name: str, start: int = 0) -> Tensor:
    """The bfloat16 copy of a float32 parameter, of the same shape.

    Args:
        weights: The parameter, or a shard of consecutive elements.
        seed: The seed of the run.
        name: The name of the parameter.
        start: The index of the first element of a shard in the whole tensor.
    """
    flat = weights.detach().contiguous().flatten()
    if flat.is_cuda:
        return _fused()(flat, _key_on(flat.device, seed, name), start).view(weights.shape)
    key = key_of(seed, name)
    copy = torch.empty_like(flat, dtype=torch.bfloat16)
    for first in range(0, len(flat), _SLICE):
        part = flat[first : first + _SLICE]
        copy[first : first + _SLICE] = rounded(part, key, start + first)
    return copy.view(weights.shape)


def round_weights(model: nn.Module, seed: int, device: torch.device | None = None) -> None:
    """Replace the parameters of a float32 model by their copy, on `device` if given.

    The device never holds all parameters in float32. Buffers stay as they are, since positions need float32.
    """
    for name, parameter in model.named_parameters():
        parameter.data = low_precision(parameter.to(device), seed, name)


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Convert the parameters of a small module to float32 inside the context."""
    before = {parameter: parameter.data for parameter in module.parameters()}
    for parameter in before:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, data in before.items():
            parameter.data = data


def compute_in(model: nn.Module, precision: str, seed: int) -> None:
    """Convert a model to `float32`, or replace float32 parameters by their `bfloat16` copy."""
    if precision == "float32":
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
    elif next(model.parameters()).dtype == torch.float32:
        round_weights(model, seed)


@torch.no_grad()
def assign(parameter: Tensor, name: str, weights: Tensor, seed: int) -> None:
    """Assign float32 weights to `parameter` or, if it belongs to a bfloat16 copy, their copy."""
    if parameter.dtype == torch.bfloat16 and weights.dtype == torch.float32:
        weights = low_precision(weights.to(parameter.device), seed, name)
    parameter.copy_(weights)


class LowPrecisionCopy:
    """Turns a float32 model into the bfloat16 copy of its weights, and keeps the trained ones as `masters`.

    When a parameter of the copy receives a gradient, it is added to that of its master in float32 and released.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._parameters = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self.masters = {name: nn.Parameter(parameter.data) for name, parameter in self._parameters.items()}
        """The trained float32 weights by parameter name, for an optimizer."""
        round_weights(model, seed)
        for name, parameter in self._parameters.items():
            parameter.register_post_accumulate_grad_hook(_adding_to(self.masters[name]))

    def refresh(self) -> None:
        """Recompute the copy after the masters have changed."""
        for name, parameter in self._parameters.items():
            parameter.data.copy_(low_precision(self.masters[name], self._seed, name))

    @contextmanager
    def replaced_by_masters(self) -> Iterator[None]:
        """The model holds the masters inside the context, to save or digest them. Nothing is copied."""
        copies = {name: parameter.data for name, parameter in self._parameters.items()}
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
