"""The model that the checks of a GPU train: Qwen3-0.6B's shape with random weights, or a small one for a CPU.

Needs only torch, transformers and numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.workloads import VOCABULARY
from reval_core.model.layers import as_loaded, set_up
from reval_core.model.low_precision import LowPrecisionCopy, low_precision
from reval_core.model.packed import read_packed_rows

SEED = 0
"""The seed of the copy's rounding thresholds."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and of its texts."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    shrink: int = 1
    """A divisor of text lengths."""
    small_lr: float = 1e-6
    """A learning rate whose updates round-to-nearest would hide."""

    def lengths(self, *lengths: int) -> list[int]:
        """Lengths of texts in tokens, for a model of this shape."""
        return [max(16, length // self.shrink) for length in lengths]


# A small model has few weights to show an update, so its learning rate is larger.
FULL = Shape(VOCABULARY, 1024, 3072, layers=28, heads=16, key_heads=8, head_size=128)
SMALL = Shape(512, 64, 128, layers=2, heads=2, key_heads=1, head_size=32, shrink=64, small_lr=1e-5)


class ModelSource:
    """A model in bfloat16 with its float32 masters, created on first use and shared by the checks."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.device = device

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @cached_property
    def weights(self) -> LowPrecisionCopy:
        """The copy that `model` is, with its masters."""
        return LowPrecisionCopy(self._made, SEED)

    @cached_property
    def model(self) -> Qwen3ForCausalLM:
        """The copy."""
        assert self.weights.masters
        return self._made

    @cached_property
    def _made(self) -> Qwen3ForCausalLM:
        model = qwen3(self.shape, self.device)
        set_up(model, packed=False, compiled=self.on_gpu)
        return model

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Let the model read packed rows inside the context."""
        config: Any = self.model.config
        before = config._attn_implementation
        read_packed_rows(self.model)
        try:
            yield
        finally:
            config._attn_implementation = before

    @contextmanager
    def masters(self) -> Iterator[None]:
        """The float32 masters in place of their copy, inside the context; layers are not compiled."""
        with self.weights.replaced_by_masters(), as_loaded(self.model):
            yield

    def publish(self) -> None:
        """Load weights as an engine receives them: the rounded masters, regardless of the current copy."""
        for name, parameter in self.model.named_parameters():
            parameter.data = low_precision(self.weights.masters[name], SEED, name)

    def optimizer(self, lr: float = 1e-6) -> torch.optim.AdamW:
        """AdamW on the masters."""
        return torch.optim.AdamW(self.weights.masters.values(), lr=lr, fused=True)

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip the gradient, step, round again. Returns the gradient's norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.weights.masters.values(), 1.0)
        optimizer.step()
        self.weights.refresh()
        optimizer.zero_grad(set_to_none=True)
        return norm


def qwen3(shape: Shape, device: torch.device) -> Qwen3ForCausalLM:
    """A Qwen3 with random float32 weights and tied embeddings."""
    torch.manual_seed(0)
    with device:
        return Qwen3ForCausalLM(architecture(shape)).eval()


def architecture(shape: Shape) -> Qwen3Config:
    """The configuration of a Qwen3 of this shape."""
    return Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_size,
        max_position_embeddings=16_384,
        tie_word_embeddings=True,
    )


def parameters(shape: Shape) -> int:
    """The number of weights of a Qwen3 of this shape. Allocates nothing."""
    return sum(one.numel() for one in qwen3(shape, torch.device("meta")).parameters())
