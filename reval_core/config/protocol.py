"""The settings of an evaluation: what is asked, how responses are drawn, and how they are judged."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from reval_core.config import (
    MOST_THREADS,
    AutoEngine,
    EngineSettings,
    Reward,
    Section,
    Tracking,
    Verification,
    VllmEngine,
)
from reval_core.config.problems import PROMPTS, ProblemSets, PromptSetting


class Protocol(Section):
    """How policies are evaluated. Two evaluations under one protocol can be compared."""

    seed: int = Field(0, ge=0)
    """Everything random follows from this number: which problems, and every response."""
    benchmarks: ProblemSets = Field(min_length=1)
    """The problem sets that are asked."""
    limit: int | None = Field(None, ge=1)
    """At most so many problems of a set, chosen by the seed; a set's own `limit` may be lower."""
    threads: int | None = Field(None, ge=1, le=MOST_THREADS)
    """torch's CPU threads."""
    samples: int = Field(16, ge=1)
    """Responses a problem (k)."""
    prompt: PromptSetting = PROMPTS["deepseek"]
    """How a problem becomes a prompt; `deepseek`, taken if not given, and `qwen` are the paper's."""
    temperature: float = Field(1.0, gt=0)
    """Of the distribution that responses are drawn from."""
    max_tokens: int = Field(2048, ge=1)
    """The longest response, in tokens, the end-of-sequence token included."""
    stop: tuple[str, ...] = ()
    """Tokens that end a response beside those that the model names itself; each must be one token."""
    problems_per_shard: int = Field(8, ge=1)
    """The problems whose responses are a shard: one unit of recovery, and one batch of the transformers engine."""
    engine: EngineSettings = AutoEngine(kind="auto")
    """What generates responses; `auto` if not given."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the transformers engine computes in; vLLM has `engine.dtype`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder."""
    verification: Verification = Verification()
    reward: Reward = Reward()
    """Its `function` judges here as well, in place of the comparison with the gold; the rest is for training."""
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reward.overlong is not None:
            raise ValueError("reward.overlong: is for training; an evaluation has no penalty, so leave it out")
        room = self.engine.max_model_len if isinstance(self.engine, VllmEngine) else None
        if room is not None and room <= self.max_tokens:
            raise ValueError(
                f"engine.max_model_len: {room} leaves no room for a prompt beside max_tokens ({self.max_tokens})"
            )
        return self
