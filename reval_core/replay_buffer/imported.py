"""Imported responses as trajectories: their prompts and their tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reval_core.config import Config
from reval_core.engines.response import Response
from reval_core.errors import InputError
from reval_core.model.loading import context_length, stop_ids
from reval_core.problems.recorded import Prompts
from reval_core.problems.selection import rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "unknown"
"""The policy of an imported response."""


@dataclass(frozen=True)
class ImportedResponses:
    """The imported responses of a file, ready for training."""

    responses: list[Response]
    """With prompts and tokens. Their texts end where the tokens end, without the end-of-text token."""
    too_long: int
    """The number of responses skipped because they exceed `rollouts.max_tokens` or the model's context."""
    prompts: Prompts
    """The prompts of the problems, as recorded or as rendered now."""
    empty: int = 0
    """The number of responses skipped because they contain no text before they end."""
    cut: int = 0
    """The number of responses truncated at an end-of-text token that is followed by more text."""

    @property
    def counts(self) -> dict[str, int]:
        """The number of responses that were skipped or truncated, by reason."""
        return {"too_long": self.too_long, "empty": self.empty, "cut": self.cut}


def tokenise(
    responses: Sequence[Response],
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    recorded: Prompts | None = None,
) -> ImportedResponses:
    """Tokenize all responses; those that are empty or too long are skipped.

    A response ends at the first end-of-text token of the model. Other special tokens that are spelled out in it are
    plain characters, as in a problem.

    Args:
        responses: The responses of a file.
        config: The config of the run.
        tokenizer: The model's tokenizer.
        recorded: Prompts that were recorded before; problems in it are not rendered again.

    Raises:
        InputError: If a prompt cannot be rendered, a problem cannot be used or a text contains characters without
            a token (the message names the row), or if no response is left.
    """
    longest, context = config.rollouts.max_tokens, context_length(config.model)
    prompts = recorded or Prompts()
    new = [response.problem for response in responses if response.problem not in prompts]
    if new:
        prompts = prompts.with_more(rendered(new, config.problems.prompt, config.model, tokenizer))
    ended = _Ends(config, tokenizer)
    texts = [ended(response.text or "") for response in responses]
    kept = [(given, text) for given, text in zip(responses, texts, strict=True) if text.said.strip()]
    found: list[Response] = []
    seen: Counter[str] = Counter()
    for (given, text), tokens in zip(kept, _plain_tokens([text.said for _, text in kept], tokenizer), strict=True):
        why = prompts.left_out(given.problem)
        if why:
            raise InputError(f"{given.place}: {why}; fix the row, or use another model.path")
        prompt, prompt_tokens = prompts[given.problem]
        _check_known(tokens, "response", given.place, tokenizer)
        whole = [*tokens, text.end]
        fits = context is None or len(prompt_tokens) + len(whole) <= context
        if fits and (longest is None or len(whole) <= longest):
            found.append(_tokenised(given, seen[given.problem], prompt, prompt_tokens, text.said, whole))
            seen[given.problem] += 1
    if not found:
        limits = f"rollouts.max_tokens: {longest}, the model's context: {context}"
        raise InputError(f"{responses[0].place}: this response and all after it are empty or too long ({limits})")
    return ImportedResponses(
        found,
        too_long=len(kept) - len(found),
        prompts=prompts,
        empty=len(responses) - len(kept),
        cut=sum(text.more for _, text in kept),
    )


def _tokenised(
    given: Response, sample: int, prompt: str, prompt_tokens: list[int], text: str, tokens: list[int]
) -> Response:
    return replace(
        given,
        sample=sample,
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        logprobs=None,
        policy_rounds=None,
        finish_reason="stop",
        text=text,
    )


@dataclass(frozen=True, slots=True)
class _Ended:
    """The text of a response before its end, the token that ends it, and whether more text follows."""

    said: str
    end: int
    more: bool


class _Ends:
    """Finds the end of a response: the first end-of-text token spelled out in it, or the end of the text."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        self._usual: int = tokenizer.eos_token_id
        # Ordinary tokens that also end a text are not searched for: `9` occurs in 19, which is another token.
        control = {self._usual, *tokenizer.added_tokens_decoder}
        ids = [one for one in stop_ids(config.model, tokenizer, ()) if one in control]
        self._ids = {text: end for end, text in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)}
        # Longest first, since one may be a prefix of another.
        self._spelled = re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))))

    def __call__(self, text: str) -> _Ended:
        match = self._spelled.search(text)
        if match is None:
            return _Ended(text, self._usual, more=False)
        rest = self._spelled.sub("", text[match.end() :])
        return _Ended(text[: match.start()], self._ids[match[0]], more=bool(rest.strip()))


def _plain_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of texts in which special tokens are treated as plain characters."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    tokens: list[list[int]] = encoded["input_ids"]
    return tokens


def _check_known(tokens: list[int], field: str, place: str, tokenizer: PreTrainedTokenizerBase) -> None:
    unknown = {tokenizer.unk_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id, None}
    if not tokens or unknown & set(tokens):
        raise InputError(
            f"{place}: the {field} contains characters that the model's tokenizer has no token for; fix the row, "
            "or use another model.path"
        )
