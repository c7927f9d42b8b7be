"""The settings of verdicts and rewards."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from reval_core.answers.extraction import Method, Mode
from reval_core.config.section import Section, not_given
from reval_core.user_code import check_call


class Verification(Section):
    """How a response is judged against the known answer."""

    mode: Mode = "strict"
    """`strict` is what training should pay for; `lenient` reads what was written for another grader."""
    methods: tuple[Method, ...] | None = Field(None, min_length=1)
    """Where the answer is looked for, in this order; by `mode` if not given."""
    workers: int = Field(2, ge=1)
    """The processes that compare answers, side by side."""
    timeout_seconds: float = Field(2.0, gt=0)
    """Processor time for one item, for a `reward.function` also the time that it sleeps; more is a `timeout`."""
    memory_mb: int = Field(1024, ge=256)
    """The address space of a worker, in MiB."""
    unjudged_limit: float = Field(0.05, ge=0, le=1)
    """The run stops when a larger share of a round ends as `timeout` or `error`."""


class Overlong(Section):
    """DAPO's soft overlong penalty (arXiv 2503.14476, Eq. 13), added to the reward in training."""

    buffer: int = Field(ge=1)
    """L_cache, in tokens: the penalty grows linearly over the last so many before rollouts.max_tokens (L_max)."""
    penalty: float = Field(1.0, gt=0)
    """What is taken off a response of rollouts.max_tokens; DAPO's is 1."""


class Reward(Section):
    """r(τ), the outcome reward of a whole response."""

    kind: Literal["binary", "centred", "signed"] = "binary"
    """`binary` 0/1, `centred` minus the mean of the prompt's group, `signed` ±1; numbers alike."""
    truncated: Literal["zero", "drop"] = "zero"
    """A response cut at the length limit counts as wrong, or stays out of the buffer."""
    overlong: Overlong | None = Field(None, exclude_if=not_given)
    """Long responses are paid less; none if not given. Accuracy and evaluations do not change."""
    function: str | None = None
    """A function that judges in place of the comparison with the gold, as `package.module:function`."""
    settings: dict[str, float | int | bool | str | None] = Field(default_factory=dict)
    """What that function is given by name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.function is None and self.settings:
            raise ValueError("settings: belong to a function; give one, or take them out")
        if self.function is not None:
            try:
                check_call(self.function, 3, self.settings)
            except ValueError as error:
                raise ValueError(f"function: {error}") from error
        return self
