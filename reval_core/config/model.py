"""The settings of the model: its source, warm start and trained parameters."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from reval_core.config.problems import ProblemSets
from reval_core.config.section import LocalPath, Section


class TinyModel(Section):
    """A small Llama with a character tokenizer, initialised by reval itself."""

    layers: int = Field(2, ge=1, le=256)
    """Transformer blocks."""
    width: int = Field(128, ge=8, le=8192)
    """Hidden size; a multiple of 2 × heads."""
    heads: int = Field(4, ge=1)
    """Attention heads per block."""
    feed_forward: int = Field(512, ge=8, le=65536)
    """Intermediate size of the feed-forward layers."""
    initializer_range: float = Field(0.06, gt=0)
    """Standard deviation of the initial weights. With transformers' 0.02 a model this small learns several times
    slower."""
    characters: str = Field("0123456789+-*= ", min_length=1)
    """The vocabulary: every character that a prompt or a response may contain."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError("width: must be a multiple of 2 × heads")
        if len(set(self.characters)) != len(self.characters):
            raise ValueError("characters: contains a duplicate")
        return self


class WarmStart(Section):
    """Supervised fine-tuning on demonstrations before the first round."""

    steps: int = Field(ge=1)
    """Number of gradient steps."""
    batch: int = Field(64, ge=1)
    """Demonstrations per step."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate: linear warm-up over the first 15% of the steps, then cosine decay."""
    right: float = Field(0.3, ge=0, le=1)
    """Fraction of demonstrations with the right answer; the others contain plausible mistakes."""
    problems: ProblemSets = ()
    """Arithmetic problem sets to demonstrate, one set or a list; by default the training problems."""
    seed: int | None = Field(None, ge=0)
    """Seed of the initial weights and the demonstrations; by default the run's seed. Runs with the same value share
    the initial policy."""


class Lora(Section):
    """Low-rank adapters (peft). The base model is frozen and serves as the reference without a second copy."""

    rank: int = Field(16, ge=1)
    """r, the rank of an adapter."""
    alpha: int = Field(32, gt=0)
    """Scale of an adapter's output: alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers that get an adapter, by the suffix of their names; `all-linear` is all linear layers except the
    head."""


class Model(Section):
    """The policy before training: a transformers model directory, or a tiny model."""

    path: LocalPath | None = None
    """Directory or hub name of a transformers model with its tokenizer."""
    tiny: TinyModel | None = None
    warm_start: WarmStart | None = None
    lora: Lora | None = None
    """Train adapters instead of all weights, which needs less memory; needs `pip install 'reval-rl[lora]'`."""
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = None
    """transformers' attention implementation; by default its own choice (sdpa for most models)."""
    trust_remote_code: bool = False
    """Execute Python code from the model directory. Set it only for models that you trust."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is None) == (self.tiny is None):
            raise ValueError("set either path or tiny")
        return self
