"""The settings of problems: which are practised on, which are held out, and how they become prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from reval_core.config.section import LocalPath, Section

GoldMode = Literal["all", "any", "choice"]
"""What a gold answer asks for: all that it lists, any one of them, or the letter of a choice."""

SetName = Literal[
    "deepscaler", "gsm8k_train", "gsm8k", "aime24", "aime25", "amc", "math500", "minerva", "olympiadbench", "gpqa"
]
"""The registered problem sets; `reval_core.problems.registered` describes them."""

ProblemField = Literal["problem", "answer", "prompt_id", "options"]
"""What a column of a problem file may hold."""


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


class Hub(Section):
    """A dataset of the Hugging Face hub; needs the extra `hub` and a network."""

    name: str
    """Its name there, such as `openai/gsm8k`."""
    config: str | None = None
    """Which of its configs."""
    split: str = "train"
    """Which of its splits."""
    revision: str | None = None
    """The commit to take; the newest if not given."""


class ProblemSet(Section):
    """Problems with known answers: a registered set, a file, a dataset of the hub, or arithmetic."""

    set: SetName | None = None
    """A registered set (docs/problems.md). Without `path` or `hub` it is looked for as a file, then on the hub."""
    path: LocalPath | None = None
    """A JSONL, JSON, CSV, Parquet or Arrow file (docs/problems.md)."""
    hub: Hub | None = None
    arithmetic: Arithmetic | None = None
    columns: dict[ProblemField, str] = Field(default_factory=dict)
    """What the file calls problem, answer, prompt_id or options; dots reach into nested columns."""
    gold_mode: GoldMode | None = None
    """What its golds ask for; the registered set's if not given, else `all`."""
    unusable: Literal["refuse", "drop"] = "refuse"
    """Rows without a problem or without an answer that can be judged, and problems that the model cannot be asked
    (docs/problems.md): refused, or left out."""
    limit: int | None = Field(None, ge=1)
    """Use only this many, chosen by the run's seed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        places = [name for name in ("path", "hub", "arithmetic") if getattr(self, name) is not None]
        if len(places) > 1 or not (places or self.set):
            raise ValueError("give one of set, path, hub and arithmetic")
        if self.arithmetic is not None:
            for name in ("set", "columns", "gold_mode"):
                if getattr(self, name):
                    raise ValueError(f"{name}: is nothing that arithmetic has")
        return self


class Example(Section):
    """A turn of a user with its answer."""

    problem: str
    """What the user's turn says in place of `{problem}`."""
    answer: str
    """What a good response says, as the model's own turn."""


class Prompt(Section):
    """How a problem becomes a prompt. `deepseek` or `qwen` in place of the section is the paper's prompt."""

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


_STEP_BY_STEP = r"{problem} Let's think step by step and output the final answer within \boxed{}."

PROMPTS: dict[str, Prompt] = {
    "deepseek": Prompt(user=_STEP_BY_STEP, chat=True),
    "qwen": Prompt(
        system=r"Please reason step by step, and put your final answer within \boxed{}.",
        user=_STEP_BY_STEP,
        chat=True,
    ),
}
"""The paper's prompts (arXiv 2603.23355), by the family of models that it asks with them."""


def _named_prompt(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in PROMPTS:
        raise ValueError(f"no prompt is called {value!r}; known are {', '.join(PROMPTS)}")
    return PROMPTS[value]


PromptSetting = Annotated[Prompt, BeforeValidator(_named_prompt)]
"""A prompt, or the name of one of the paper's."""


def _one_or_several(value: Any) -> Any:
    """One problem set in place of a list of them."""
    if value is None:
        return ()
    return (value,) if isinstance(value, dict | ProblemSet) else value


ProblemSets = Annotated[tuple[ProblemSet, ...], BeforeValidator(_one_or_several)]


class Problems(Section):
    """What is practised on, and what accuracy is measured on."""

    train: ProblemSet | None = None
    """What rollouts answer and updates learn from. A run of stored trajectories needs none."""
    held_out: ProblemSets = ()
    """What accuracy is measured on, one set or a list; nothing is learned from it. A run of stored trajectories
    needs none."""
    never_train_on: ProblemSets = ()
    """Further test sets that the training problems are compared with."""
    contaminated: Literal["refuse", "drop", "keep"] = "refuse"
    """Training problems that stand in `held_out` or `never_train_on` too (docs/problems.md): refused, left out of
    training, or kept knowingly."""
    prompt: PromptSetting = Prompt()
