"""The settings of problems: which are practised on, which are held out, and how they become prompts."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from reval_core.config.section import Section

GoldMode = Literal["all", "any", "choice"]
"""What a gold answer asks for: all that it lists, any one of them, or the letter of a choice."""


class Arithmetic(Section):
    """All problems of two operands with `digits` digits, parted into two splits by a fixed hash."""

    digits: int = Field(2, ge=1, le=3)
    """The digits of each operand: 2 is from 10 to 99, 1 is from 0 to 9."""
    operators: str = Field("+", pattern=r"^[-+*]+$")
    """Which of `+`, `-` and `*` stand between the operands; each makes problems of its own."""
    split: Literal["train", "held_out"] = "train"
    """One problem in ten is held out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.operators)) != len(self.operators):
            raise ValueError("operators: holds one twice")
        return self


class ProblemSet(Section):
    """Problems with known answers: a file, or arithmetic that is made on the spot."""

    path: str | None = None
    """A JSONL file with `problem` and `answer` on each line, and optionally `prompt_id`."""
    arithmetic: Arithmetic | None = None
    limit: int | None = Field(None, ge=1)
    """Use only this many, chosen by the run's seed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is None) == (self.arithmetic is None):
            raise ValueError("give either path or arithmetic")
        return self


class Example(Section):
    """A turn of a user with its answer."""

    problem: str
    """What the user's turn says in place of `{problem}`."""
    answer: str
    """What a good response says, as the model's own turn."""


class Prompt(Section):
    """How a problem becomes a prompt."""

    user: str = "{problem}"
    """The user's turn; `{problem}` stands for the problem's text."""
    system: str | None = None
    """The system turn, in a chat."""
    examples: tuple[Example, ...] = ()
    """Turns before the problem's own, in a chat: they show a base model the form of an answer."""
    chat: bool = False
    """Wrap the turns in the tokenizer's chat template."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{problem}" not in self.user:
            raise ValueError("user: must contain {problem}")
        for name in ("system", "examples"):
            if getattr(self, name) and not self.chat:
                raise ValueError(f"{name}: turns need chat: true")
        return self


class Problems(Section):
    """What is practised on, and what accuracy is measured on."""

    train: ProblemSet | None = None
    """What rollouts answer and updates learn from. A run of stored trajectories needs none."""
    held_out: ProblemSet | None = None
    """What accuracy is measured on; nothing is learned from it. A run of stored trajectories needs none."""
    prompt: Prompt = Prompt()
