"""The settings of the model: where it comes from, and what of it is trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from reval_core.config.problems import ProblemSets
from reval_core.config.section import LocalPath, Section


class TinyModel(Section):
    """A small Llama with a character tokenizer, made by reval itself."""

    layers: int = Field(2, ge=1, le=256)
    """Transformer blocks."""
    width: int = Field(128, ge=8, le=8192)
    """The size of a hidden state; a multiple of 2 × heads."""
    heads: int = Field(4, ge=1)
    """Attention heads a block."""
    feed_forward: int = Field(512, ge=8, le=65536)
    """The inner size of a block's feed-forward layer."""
    initializer_range: float = Field(0.06, gt=0)
    """The deviation of the first weights. At transformers' 0.02 a model this small learns several times slower."""
    characters: str = Field("0123456789+-*= ", min_length=1)
    """Every character that a prompt or a response may hold."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError("width: must be a multiple of 2 × heads")
        if len(set(self.characters)) != len(self.characters):
            raise ValueError("characters: holds one twice")
        return self


class WarmStart(Section):
    """Supervised fitting to demonstrations before the first round."""

    steps: int = Field(ge=1)
    """Gradient steps."""
    batch: int = Field(64, ge=1)
    """Demonstrations a step."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate: a linear warm-up over the first 15% of the steps, then a cosine."""
    right: float = Field(0.3, ge=0, le=1)
    """The share of demonstrations that carry the right answer; the rest carry plausible mistakes."""
    problems: ProblemSets = ()
    """Arithmetic that is demonstrated, one set or a list; what is trained on if not given."""
    seed: int | None = Field(None, ge=0)
    """Of the first weights and the demonstrations; the run's own if not given. Runs that share it share
    policy 0."""


class Lora(Section):
    """Low-rank adapters (peft): the base stays as it is, and is the reference without a second copy."""

    rank: int = Field(16, ge=1)
    """r, the inner size of an adapter."""
    alpha: int = Field(32, gt=0)
    """An adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """The layers that get one, by the end of their names; `all-linear` is all but the head."""


class Model(Section):
    """The policy before training: a folder of transformers, or a tiny model."""

    path: LocalPath | None = None
    """A folder (or hub name) that transformers can load, with its tokenizer."""
    tiny: TinyModel | None = None
    warm_start: WarmStart | None = None
    lora: Lora | None = None
    """Train adapters instead of the weights; needs `pip install 'reval[lora]'`."""
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = None
    """transformers' implementation of attention; its own choice (sdpa for most models) if not given."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is None) == (self.tiny is None):
            raise ValueError("give either path or tiny")
        return self
