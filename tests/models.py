"""Small random models and trajectories for unit tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from reval_core.config import TinyModel
from reval_core.learning.shared_scoring import Groups, Scoring, Texts, shared_scores
from reval_core.learning.update import Drawn
from reval_core.model.loading import make_tiny_model, save_model
from reval_core.model.scoring import Scorer, Scores, score
from reval_core.model.token_batch import Rows, collate
from reval_core.objectives import Inputs, Outputs

TINY = TinyModel(layers=2, width=32, heads=2, feed_forward=64)
VOCABULARY = 3 + len(TINY.characters)


def tiny_model(seed: int = 0) -> PreTrainedModel:
    """A model with random weights, large enough for its logits to differ."""
    model = make_tiny_model(TINY, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def random_rows(count: int, low: int, high: int, seed: int = 0) -> Rows:
    """`count` rows of `low` to `high` random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, size=int(rng.integers(low, high + 1))) for _ in range(count)]


def drawn(model: PreTrainedModel, count: int = 8, seed: int = 0, reward: float | None = None) -> Drawn:
    """Random trajectories whose reference is `model`, with random 0/1 rewards or all `reward`."""
    rng = np.random.default_rng(seed)
    prompts, responses = random_rows(count, 2, 6, seed), random_rows(count, 1, 7, seed + 1)
    with torch.inference_mode():
        scores = score(model, collate(prompts, responses))
    rewards = rng.integers(0, 2, count) if reward is None else np.full(count, reward)
    logprobs = [row[: len(response)] for row, response in zip(scores.logprobs.numpy(), responses, strict=True)]
    return Drawn(
        ids=np.arange(count),
        prompts=prompts,
        responses=responses,
        written=[np.ones(len(response), dtype=bool) for response in responses],
        engine_logprobs=logprobs,
        old_logprobs=logprobs,
        truncated=np.zeros(count, dtype=bool),
        weight=np.ones(count, dtype=np.float32),
        reward=rewards.astype(np.float32),
        advantage=(rewards - rewards.mean()).astype(np.float32),
        log_ref=scores.log_policy.numpy().copy(),
        value_ref=scores.value.numpy().copy(),
        identity=f"draw {seed}",
    )


def scores_in_updates(model: PreTrainedModel, texts: Texts, packed: bool) -> Callable[[Groups], list[Scores]]:
    """Scores micro-batches of these texts as an update does."""
    scoring = Scoring(temperature=1.0, packed=packed, as_in_updates=True)
    scorer = Scorer(model)
    return lambda groups: [one.scores for one in shared_scores(scorer, model.device, texts, groups, scoring)]


def margin_objective(inputs: Inputs, beta: float = 1.0, margin: float = 0.0) -> Outputs:
    """An objective such as a user writes: ReVal's residual, of which the first `margin` is free."""
    delta = inputs.value - inputs.value_ref + inputs.logprobs.sum(dim=1) - inputs.log_ref - inputs.reward / beta
    over = (delta.abs() - margin).clamp(min=0)
    quiet = delta.detach()
    return Outputs(over.square(), quiet, quiet * 0, quiet * 0, {"over": over.detach()})


def broken_objective(inputs: Inputs, fault: str) -> Outputs:
    """An objective with a mistake in it."""
    loss = inputs.value.unsqueeze(1) if fault == "shape" else inputs.value
    still = inputs.value.detach()
    return Outputs(loss, still, still, still, {"delta": still})


def engine_objective(inputs: Inputs) -> Outputs:
    """An objective that needs to know how likely the engine found a response."""
    gap = (inputs.logprobs - inputs.engine_logprobs).sum(dim=1)
    still = inputs.value.detach() * 0
    return Outputs(gap.square(), still, still, still)


def save_byte_level_model(directory: Path) -> None:
    """A small random Llama that reads and writes any text, a token a byte, saved as transformers does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate(["<pad>", "</s>", *alphabet])}
    raw = Tokenizer(BPE(tokens, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.06,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_model(LlamaForCausalLM(config), tokenizer, directory)
