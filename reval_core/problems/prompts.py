"""How a problem becomes a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reval_core.config import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_text(problem: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that a model reads before it answers `problem`."""
    if not prompt.chat:
        return prompt.user.replace("{problem}", problem)
    turns = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
    for example in prompt.examples:
        turns.append({"role": "user", "content": prompt.user.replace("{problem}", example.problem)})
        turns.append({"role": "assistant", "content": example.answer})
    turns.append({"role": "user", "content": prompt.user.replace("{problem}", problem)})
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def prompt_tokens(text: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of a prompt's text. A chat template writes its own special tokens."""
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=not prompt.chat)
    return tokens
