"""The settings of problems: training and held-out sets, and the prompt template."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from reval_core.config.section import LocalPath, Section

GoldMode = Literal["all", "any", "choice"]
"""What a gold answer requires: all values that it lists, any one of them, or the letter of a choice."""

SetName = Literal[
    "deepscaler", "gsm8k_train", "gsm8k", "aime24", "aime25", "amc", "math500", "minerva", "olympiadbench", "gpqa"
]
"""The registered problem sets; `reval_core.problems.registered` describes them."""

ProblemField = Literal["problem", "answer", "prompt_id", "options"]
"""The fields that a column of a problem file may contain."""


class Arithmetic(Section):
    """All problems of two operands with `digits` digits, divided into two splits by a fixed hash."""

    digits: int = Field(2, ge=1, le=3)
    """Digits of each operand: 2 means 10 to 99, 1 means 0 to 9."""
    operators: str = Field("+", pattern=r"^[-+*]+$")
    """Operators, a subset of `+`, `-` and `*`; every pair of operands occurs with each of them."""
    split: Literal["train", "held_out"] = "train"
    """The split; about one problem in ten is held out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.operators)) != len(self.operators):
            raise ValueError("operators: contains a duplicate")
        return self


class Hub(Section):
    """A dataset of the Hugging Face hub; needs the extra `hub` and network access."""

    name: str
    """Name of the dataset, such as `openai/gsm8k`."""
    config: str | None = None
    """Configuration (subset) of the dataset."""
    split: str = "train"
    """Split of the dataset."""
    revision: str | None = None
    """Commit to load; by default the newest. Set it for reproducible runs."""


class ProblemSet(Section):
    """Problems with gold answers: a registered set, a file, a hub dataset, or arithmetic."""

    set: SetName | None = None
    """Name of a registered set (docs/problems.md). Without `path` or `hub` it is searched as a file, then on the
    hub."""
    path: LocalPath | None = None
    """Path of a JSONL, JSON, CSV, Parquet or Arrow file (docs/problems.md)."""
    hub: Hub | None = None
    arithmetic: Arithmetic | None = None
    columns: dict[ProblemField, str] = Field(default_factory=dict)
    """Column names of the file for problem, answer, prompt_id or options; dots select nested columns. By default
    common names are recognised."""
    gold_mode: GoldMode | None = None
    """What a gold answer that lists several values requires; by default that of the registered set, else `all`."""
    unusable: Literal["refuse", "drop"] = "refuse"
    """What to do with rows without a problem or a gradable answer, and with problems that cannot be rendered for
    the model (docs/problems.md): refuse the set, or drop those rows."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of problems, chosen by the run's seed; by default all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        places = [name for name in ("path", "hub", "arithmetic") if getattr(self, name) is not None]
        if len(places) > 1 or not (places or self.set):
            raise ValueError("set exactly one of set, path, hub and arithmetic")
        if self.arithmetic is not None:
            for name in ("set", "columns", "gold_mode"):
                if getattr(self, name):
                    raise ValueError(f"{name}: does not apply to arithmetic")
        return self


class Example(Section):
    """A few-shot example: a user turn with its answer."""

    problem: str
    """Text that replaces `{problem}` in the user turn."""
    answer: str
    """Text of the assistant turn."""


class Prompt(Section):
    """The prompt template. `deepseek` or `qwen` instead of the section selects the paper's prompt."""

    user: str = "{problem}"
    """The user turn; `{problem}` is replaced by the text of the problem."""
    system: str | None = None
    """The system turn; requires `chat`."""
    examples: tuple[Example, ...] = ()
    """Few-shot examples before the problem, which show a base model the format of an answer; require `chat`."""
    chat: bool = False
    """Apply the tokenizer's chat template."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{problem}" not in self.user:
            raise ValueError("user: must contain {problem}")
        for name in ("system", "examples"):
            if getattr(self, name) and not self.chat:
                raise ValueError(f"{name}: requires chat: true")
        return self


_STEP_BY_STEP = r"{problem} Let's think step by step and output the final answer within \boxed{}."

PROMPTS: dict[str, Prompt] = {
    "deepseek": Prompt(user=_STEP_BY_STEP, chat=True),
    "qwen": Prompt(
        system=r"Please reason step by step, and put your final answer within \boxed{}.",
        user=_STEP_BY_STEP,
        chat=True,
    ),
}
"""The paper's prompts (arXiv 2603.23355), by model family."""


def _named_prompt(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in PROMPTS:
        raise ValueError(f"unknown prompt {value!r}; known prompts are {', '.join(PROMPTS)}")
    return PROMPTS[value]


PromptSetting = Annotated[Prompt, BeforeValidator(_named_prompt)]
"""A prompt template, or the name of one of the paper's."""


def _one_or_several(value: Any) -> Any:
    """Accept a single problem set instead of a list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, dict | ProblemSet) else value


ProblemSets = Annotated[tuple[ProblemSet, ...], BeforeValidator(_one_or_several)]


class Problems(Section):
    """The training problems, and the problems that accuracy is measured on."""

    train: ProblemSet | None = None
    """The training problems. A run on stored trajectories needs none."""
    held_out: ProblemSets = ()
    """The problems that accuracy is measured on, one set or a list; never trained on. A run on stored trajectories
    needs none."""
    never_train_on: ProblemSets = ()
    """Further test sets for the contamination check of the training problems."""
    contaminated: Literal["refuse", "drop", "keep"] = "refuse"
    """What to do with training problems that also occur in `held_out` or `never_train_on` (docs/problems.md):
    refuse to start, drop them from training, or keep them."""
    prompt: PromptSetting = Prompt()
