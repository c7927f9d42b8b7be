"""Responses from elsewhere as trajectories: their tokens, and the rows of their shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from reval_core.config import Config, GoldMode
from reval_core.errors import InputError
from reval_core.facts import SCHEMAS
from reval_core.files import digest
from reval_core.models import context_length
from reval_core.problems.asked import rendered
from reval_core.problems.recorded import Prompts
from reval_core.responses import Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "unknown"
"""The policy of a response that came from elsewhere."""


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A response with the tokens that a model would have read and written."""

    given: Response
    prompt: str
    prompt_tokens: list[int]
    tokens: list[int]
    """The response's, the end-of-sequence token included."""


@dataclass(frozen=True)
class Material:
    """What a file holds for a run."""

    rows: list[Tokenised]
    too_long: int
    """Responses that are left out, because they are longer than `rollouts.max_tokens` or the model's context."""
    prompts: Prompts


def tokenise(
    responses: Sequence[Response],
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    recorded: Prompts | None = None,
) -> Material:
    """The tokens of all responses, without those that are too long, with the prompts that were `recorded` before.

    Raises InputError if a prompt cannot be made, naming the row if its problem cannot be asked or a text holds what
    the tokenizer has no token for, or if nothing is left.
    """
    longest, context = config.rollouts.max_tokens, context_length(config.model)
    prompts = recorded or Prompts()
    new = [response.problem for response in responses if response.problem not in prompts]
    if new:
        prompts = prompts.with_more(rendered(new, config.problems.prompt, config.model, tokenizer))
    texts = [response.response for response in responses]
    rows = []
    for response, tokens in zip(
        responses, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], strict=True
    ):
        why = prompts.left_out(response.problem)
        if why:
            raise InputError(f"{response.place}: {why}; fix the row, or take another model.path")
        text, prompt = prompts[response.problem]
        _check_known(tokens, "response", response.place, tokenizer)
        ended = tokens if tokens[-1] == tokenizer.eos_token_id else [*tokens, tokenizer.eos_token_id]
        fits = context is None or len(prompt) + len(ended) <= context
        if fits and (longest is None or len(ended) <= longest):
            rows.append(Tokenised(response, text, prompt, ended))
    if not rows:
        limits = f"rollouts.max_tokens: {longest}, the model's context: {context}"
        raise InputError(f"{responses[0].place}: this response and all after it are too long ({limits})")
    return Material(rows, len(responses) - len(rows), prompts)


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
            f"{place}: the {field} holds characters that the model's tokenizer has no token for; mend the row, or "
            "take another model.path"
        )
