"""The settings of an evaluation: the benchmarks, the decoding parameters and the verification of responses."""

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
    """How policies are evaluated. Evaluations with the same protocol are comparable."""

    seed: int = Field(0, ge=0)
    """Seed of everything random: the choice of problems, and every response."""
    benchmarks: ProblemSets = Field(min_length=1)
    """The problem sets to evaluate on."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of problems per set, chosen by the seed; a set's own `limit` may be lower."""
    threads: int | None = Field(None, ge=1, le=MOST_THREADS)
    """torch's CPU threads; by default torch's own choice."""
    samples: int = Field(16, ge=1)
    """k, the number of responses per problem."""
    prompt: PromptSetting = PROMPTS["deepseek"]
    """The prompt template; `deepseek` (the default) and `qwen` are the paper's prompts."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""
    max_tokens: int = Field(2048, ge=1)
    """Maximum tokens per response, including the end-of-sequence token."""
    stop: tuple[str, ...] = ()
    """Stop tokens in addition to the model's own; each must be a single token."""
    problems_per_shard: int = Field(8, ge=1)
    """Problems per shard. A shard of responses is the unit of recovery, and one batch of the transformers
    engine."""
    engine: EngineSettings = AutoEngine(kind="auto")
    """The engine that generates responses."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the transformers engine; for vLLM set `engine.dtype`."""
    trust_remote_code: bool = False
    """Execute Python code from the model directory. Set it only for models that you trust."""
    verification: Verification = Verification()
    reward: Reward = Reward()
    """Only `function` and its settings apply: a function that judges responses instead of the comparison with the
    gold answer."""
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reward.overlong is not None:
            raise ValueError("reward.overlong: applies to training only; remove it")
        room = self.engine.max_model_len if isinstance(self.engine, VllmEngine) else None
        if room is not None and room <= self.max_tokens:
            raise ValueError(
                f"engine.max_model_len: {room} leaves no room for a prompt in addition to max_tokens "
                f"({self.max_tokens})"
            )
        return self
