"""Rendering of prompts: the text and the tokens that a model reads for a problem."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reval_core.config import Prompt
from reval_core.errors import InputError
from reval_core.problems.spelling import Encoded, Speller

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 256
"""Problems per tokenizer call: character offsets need far more memory than token ids."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as a model reads it."""

    text: str
    tokens: list[int]
    fault: str = ""
    """Why the prompt cannot be used, if it cannot."""


def render(
    problems: Sequence[str], prompt: Prompt, tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()
) -> Iterator[Rendered]:
    """Render the prompt of each problem, in order, with a fault if the model would not read the problem's exact
    text.

    Args:
        problems: the texts of the problems.
        prompt: the prompt template.
        tokenizer: the model's tokenizer.
        ends: ids of the tokens that end a text.

    Raises:
        InputError: if prompts cannot be rendered: the tokenizer has no chat template, or the template fails or
            omits parts of the settings, or a prompt ends with an end token.
    """
    if prompt.chat and not tokenizer.chat_template:
        raise InputError(
            f"{_model(tokenizer)}: prompt.chat: its tokenizer has no chat template; set prompt.chat: false, and "
            "remove the system turn and the examples"
        )
    # A chat template contains its own special tokens.
    speller = Speller(tokenizer, add_special_tokens=not prompt.chat)
    for first in range(0, len(problems), _BATCH):
        part = problems[first : first + _BATCH]
        texts = [prompt_text(one, prompt, tokenizer) for one in part]
        for problem, text, read in zip(part, texts, speller.encode(texts), strict=True):
            if prompt.chat:
                _check_settings(text, prompt, tokenizer)
            found = _rendered(problem, text, read, prompt, tokenizer, speller)
            _check_end(found, ends, tokenizer)
            yield found


def prompt_text(problem: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the prompt for `problem`. Raises InputError if the chat template fails."""
    if not prompt.chat:
        return prompt.user.replace("{problem}", problem)
    turns = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
    for example in prompt.examples:
        turns.append({"role": "user", "content": prompt.user.replace("{problem}", example.problem)})
        turns.append({"role": "assistant", "content": example.answer})
    turns.append({"role": "user", "content": prompt.user.replace("{problem}", problem)})
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program that may raise any error
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{_model(tokenizer)}: prompt: its chat template fails ({why}); change prompt.system or "
            "prompt.examples, or set prompt.chat: false"
        ) from error
    return text


def _rendered(
    problem: str, text: str, read: Encoded, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, speller: Speller
) -> Rendered:
    core = problem.strip()  # templates strip the content of turns
    if prompt.user.replace("{problem}", problem).strip() not in text:
        return Rendered(text, read.ids, "the model's chat template leaves the problem's text out, or changes it")
    spellings = speller.spelled(text, read, core)
    if spellings:
        lead, _, trail = problem.partition(core)

        def between(first: str, last: str) -> str:
            return prompt_text(f"{lead}{first}{core}{last}{trail}", prompt, tokenizer)

        kept = speller.keep_as_text(core, between) if read.span_of else None
        if kept is None:
            return Rendered(
                text,
                read.ids,
                f"the problem spells {spellings[0]}, which the model's tokenizer cannot keep as text",
            )
        text, read = kept
    unknown = speller.unknown(text, read)
    if unknown or not read.ids:
        shown = f" ({', '.join(map(repr, unknown[:5]))})" if any(unknown) else ""
        whose = "the problem" if not any(unknown) or any(one in problem for one in unknown) else "prompt.user"
        fault = f"{whose} holds characters that the model's tokenizer has no token for{shown}"
        return Rendered(text, read.ids, fault)
    return Rendered(text, read.ids)


def _check_settings(text: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError if a rendered chat lacks the system turn or an example of the settings."""
    own = {"system": prompt.system or ""}
    for number, example in enumerate(prompt.examples):
        own[f"examples[{number}].problem"] = prompt.user.replace("{problem}", example.problem)
        own[f"examples[{number}].answer"] = example.answer
    for name, content in own.items():
        if content.strip() not in text:
            raise InputError(
                f"{_model(tokenizer)}: prompt.{name}: its chat template omits or changes this; move it to "
                "prompt.user, or remove it"
            )


def _check_end(rendered: Rendered, ends: Collection[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError if a prompt ends with an end token, possibly followed by whitespace."""
    last = len(rendered.tokens) - 1
    while last > 0 and rendered.tokens[last] not in ends and tokenizer.decode([rendered.tokens[last]]).isspace():
        last -= 1
    if last >= 0 and rendered.tokens[last] in ends:
        token = tokenizer.convert_ids_to_tokens(rendered.tokens[last])
        raise InputError(
            f"{_model(tokenizer)}: prompt: its tokenizer or chat template ends the prompt with the end token "
            f"{token}; set add_eos_token to false in tokenizer_config.json, or fix the post_processor "
            "in tokenizer.json or the template"
        )


def _model(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "model.tiny"
