"""The model that the checks of a GPU train: Qwen3-0.6B's shape with random weights, or a small one for a CPU.

Needs torch, transformers and numpy alone.
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
"""Of the thresholds that the copy is rounded by."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, and of the texts that it is given."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    shrink: int = 1
    """Lengths of texts are divided by this."""
    small_lr: float = 1e-6
    """Of updates that a rounding to the nearest would hide."""

    def lengths(self, *lengths: int) -> list[int]:
        """Lengths of texts in tokens, for a model of this shape."""
        return [max(16, length // self.shrink) for length in lengths]


# Few weights see few of their updates, so that the small model's are larger.
FULL = Shape(VOCABULARY, 1024, 3072, layers=28, heads=16, key_heads=8, head_size=128)
SMALL = Shape(512, 64, 128, layers=2, heads=2, key_heads=1, head_size=32, shrink=64, small_lr=1e-5)


class ModelSource:
    """A model in bfloat16 with its float32 masters, made when it is first asked for and shared by the checks."""

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
        """Let the model read packed rows, for as long as the context lasts."""
        config: Any = self.model.config
        before = config._attn_implementation
        read_packed_rows(self.model)
        try:
            yield
        finally:
            config._attn_implementation = before

    @contextmanager
    def masters(self) -> Iterator[None]:
        """The float32 masters in place of their copy, for as long as the context lasts; layers are not compiled."""
        with self.weights.replaced_by_masters(), as_loaded(self.model):
            yield

    def publish(self) -> None:
        """Give the model new weights as an engine gets them: what the masters round to, whatever its copy is."""
        for name, parameter in self.model.named_parameters():
            parameter.data = low_precision(self.weights.masters[name], SEED, name)

    def optimizer(self, lr: float = 1e-6) -> torch.optim.AdamW:
        """AdamW on the masters."""
        return torch.optim.AdamW(self.weights.masters.values(), lr=lr, fused=True)

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip the gradient, step, round again. The gradient's norm."""
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
    """How many weights a Qwen3 of this shape has. Nothing is allocated."""
    return sum(one.numel() for one in qwen3(shape, torch.device("meta")).parameters())
