"""The settings of verification and rewards."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from reval_core.answers.extraction import Method, Mode
from reval_core.config.section import Section, not_given
from reval_core.user_code import check_call


class Verification(Section):
    """How responses are compared with the gold answers."""

    mode: Mode = "strict"
    """`strict` for training; `lenient` accepts responses that were written for another grader."""
    methods: tuple[Method, ...] | None = Field(None, min_length=1)
    """Answer extraction methods, tried in this order; by default determined by `mode`."""
    workers: int = Field(2, ge=1)
    """Number of processes that compare answers in parallel."""
    timeout_seconds: float = Field(2.0, gt=0)
    """CPU time limit per response, in seconds; exceeding it is a `timeout`. For a `reward.function` it includes
    time spent waiting."""
    memory_mb: int = Field(1024, ge=256)
    """Address space limit of a worker, in MiB."""
    unjudged_limit: float = Field(0.05, ge=0, le=1)
    """Stop the run when a larger fraction of a round's responses ends as `timeout` or `error`."""


class Overlong(Section):
    """DAPO's soft overlong penalty (arXiv 2503.14476, Eq. 13), applied to the training reward."""

    buffer: int = Field(ge=1)
    """L_cache, in tokens: the penalty grows linearly over this many tokens before `rollouts.max_tokens` (L_max)."""
    penalty: float = Field(1.0, gt=0)
    """Penalty of a response of `rollouts.max_tokens` tokens; 1 in DAPO."""


class Reward(Section):
    """r(τ), the outcome reward of a whole response."""

    kind: Literal["binary", "centred", "signed"] = "binary"
    """`binary`: 0 or 1. `centred`: minus the mean of the prompt's group. `signed`: ±1. Numeric rewards are
    transformed alike."""
    truncated: Literal["zero", "drop"] = "zero"
    """A response cut at the length limit counts as incorrect (`zero`), or is not added to the buffer (`drop`)."""
    overlong: Overlong | None = Field(None, exclude_if=not_given)
    """Penalty for long responses; off by default. Does not affect accuracy and evaluations."""
    function: str | None = None
    """Import path of a reward function, as `package.module:function`; it replaces the comparison with the gold
    answer."""
    settings: dict[str, float | int | bool | str | None] = Field(default_factory=dict)
    """Keyword arguments of that function."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.function is None and self.settings:
            raise ValueError("settings: require a function; set one, or remove them")
        if self.function is not None:
            try:
                check_call(self.function, 3, self.settings)
            except ValueError as error:
                raise ValueError(f"function: {error}") from error
        return self
