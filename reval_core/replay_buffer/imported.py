"""Responses from elsewhere as trajectories: their tokens, and the rows of their shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from reval_core.atomic_files import digest
from reval_core.config import Config, GoldMode
from reval_core.errors import InputError
from reval_core.model.loading import context_length, stop_ids
from reval_core.problems.asked import rendered
from reval_core.problems.recorded import Prompts
from reval_core.problems.response_files import Response
from reval_core.storage.tables import SCHEMAS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "unknown"
"""The policy of a response that came from elsewhere."""


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A response with the tokens that a model would have read and written."""

    given: Response
    """Its `response` ends where the tokens do, without the end-of-text token."""
    prompt: str
    prompt_tokens: list[int]
    tokens: list[int]
    """The response's, the end-of-text token included."""


@dataclass(frozen=True)
class Material:
    """What a file holds for a run."""

    rows: list[Tokenised]
    too_long: int
    """Responses that are left out, because they are longer than `rollouts.max_tokens` or the model's context."""
    prompts: Prompts
    """Those of the problems, as they were recorded or are rendered now."""
    empty: int = 0
    """Responses that are left out, because they say nothing before they end."""
    cut: int = 0
    """Responses that are cut at an end-of-text token, because more text follows it."""

    @property
    def counts(self) -> dict[str, int]:
        """How many responses were not taken as they are, by why."""
        return {"too_long": self.too_long, "empty": self.empty, "cut": self.cut}


def tokenise(
    responses: Sequence[Response],
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    recorded: Prompts | None = None,
) -> Material:
    """The tokens of all responses, without those that are empty or too long, with the prompts `recorded` before.

    A response ends at the first token that ends a text of this model. Other special tokens that it spells are
    plain characters, as in a problem. Raises InputError if a prompt cannot be made, naming the row if its problem
    cannot be asked or a text holds what the tokenizer has no token for, or if nothing is left.
    """
    longest, context = config.rollouts.max_tokens, context_length(config.model)
    prompts = recorded or Prompts()
    new = [response.problem for response in responses if response.problem not in prompts]
    if new:
        prompts = prompts.with_more(rendered(new, config.problems.prompt, config.model, tokenizer))
    ended = _Ends(config, tokenizer)
    texts = [ended(response.response) for response in responses]
    kept = [(given, text) for given, text in zip(responses, texts, strict=True) if text.said.strip()]
    rows = []
    for (given, text), tokens in zip(kept, _plain_tokens([text.said for _, text in kept], tokenizer), strict=True):
        why = prompts.left_out(given.problem)
        if why:
            raise InputError(f"{given.place}: {why}; fix the row, or take another model.path")
        prompt, asked_tokens = prompts[given.problem]
        _check_known(tokens, "response", given.place, tokenizer)
        whole = [*tokens, text.end]
        fits = context is None or len(asked_tokens) + len(whole) <= context
        if fits and (longest is None or len(whole) <= longest):
            rows.append(Tokenised(replace(given, response=text.said), prompt, asked_tokens, whole))
    if not rows:
        limits = f"rollouts.max_tokens: {longest}, the model's context: {context}"
        raise InputError(f"{responses[0].place}: this response and all after it are empty or too long ({limits})")
    return Material(
        rows,
        too_long=len(kept) - len(rows),
        prompts=prompts,
        empty=len(responses) - len(kept),
        cut=sum(text.more for _, text in kept),
    )


@dataclass(frozen=True, slots=True)
class _Ended:
    """What a response says before it ends, the token that ends it, and whether more text follows that."""

    said: str
    end: int
    more: bool


class _Ends:
    """Finds the end of a response: the first end-of-text token of the model that it spells, or its last place."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        self._usual: int = tokenizer.eos_token_id
        # An ordinary token that ends a text as well is no spelling: `9` stands in 19, which is another token.
        control = {self._usual, *tokenizer.added_tokens_decoder}
        ids = [one for one in stop_ids(config.model, tokenizer, ()) if one in control]
        self._ids = {text: end for end, text in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)}
        # The longest first: one may begin as another does.
        self._spelled = re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))))

    def __call__(self, text: str) -> _Ended:
        found = self._spelled.search(text)
        if found is None:
            return _Ended(text, self._usual, more=False)
        rest = self._spelled.sub("", text[found.end() :])
        return _Ended(text[: found.start()], self._ids[found[0]], more=bool(rest.strip()))


def _plain_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of texts in which special tokens are only characters."""
    if not texts:
        return []
    given = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    tokens: list[list[int]] = given["input_ids"]
    return tokens


def import_table(
    rows: Sequence[Tokenised],
    samples: Sequence[int],
    *,
    shard: int,
    first: int,
    problem_set: str,
    gold_mode: GoldMode,
) -> pa.Table:
    """The rows of a shard of round 0. `first` is the place of its first row, `samples` their `sample_numbers`.

    Nothing is known of the policy: it has no name, no seed, no temperature and no log-probs.
    """
    count = len(rows)
    columns = {
        "trajectory_id": [first + row for row in range(count)],
        "round": [0] * count,
        "shard": [shard] * count,
        "row": list(range(count)),
        "prompt_id": [digest(one.given.problem)[:16] for one in rows],
        "sample": list(samples),
        "problem": [one.given.problem for one in rows],
        "gold": [one.given.gold for one in rows],
        "problem_set": [problem_set] * count,
        "gold_mode": [gold_mode] * count,
        "given_reward": [one.given.reward for one in rows],
        "prompt": [one.prompt for one in rows],
        "response": [one.given.response for one in rows],
        "prompt_length": [len(one.prompt_tokens) for one in rows],
        "response_length": [len(one.tokens) for one in rows],
        "finish_reason": ["stop"] * count,
        "policy": [UNKNOWN] * count,
        "engine": ["import"] * count,
        "temperature": pa.nulls(count, pa.float32()),
        "seed": pa.nulls(count, pa.int64()),
        "prompt_tokens": [one.prompt_tokens for one in rows],
        "response_tokens": [one.tokens for one in rows],
        "loss_mask": [[True] * len(one.tokens) for one in rows],
        "engine_logprobs": pa.nulls(count, pa.list_(pa.float32())),
        "policy_rounds": pa.nulls(count, pa.list_(pa.int32())),
    }
    return pa.table(columns, schema=SCHEMAS["trajectories"])


def sample_numbers(rows: Sequence[Tokenised]) -> list[int]:
    """For each row, how many responses to the same problem stand before it."""
    seen: Counter[str] = Counter()
    numbers = []
    for row in rows:
        numbers.append(seen[row.given.problem])
        seen[row.given.problem] += 1
    return numbers


def _check_known(tokens: list[int], field: str, place: str, tokenizer: PreTrainedTokenizerBase) -> None:
    unknown = {tokenizer.unk_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id, None}
    if not tokens or unknown & set(tokens):
        raise InputError(
            f"{place}: the {field} holds characters that the model's tokenizer has no token for; fix the row, or "
            "take another model.path"
        )
