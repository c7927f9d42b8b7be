"""The models and batches of the benchmarks, the same in every process by their seeds.

Needs only torch, transformers and numpy: peers import it in separate environments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 151_936  # Qwen's
TRL_LENGTHS = [1024, 400, 200, 100]


@dataclass(frozen=True)
class Work:
    """Prompts and responses, each with an advantage."""

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    advantages: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(map(len, self.prompts)) + sum(map(len, self.responses))


def llama(
    vocabulary: int, width: int, layers: int, heads: int = 4, feed_forward: int | None = None
) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()


def texts(lengths: list[int], vocabulary: int, prompt: int = 32) -> Work:
    """Random texts of these lengths, the first `prompt` tokens of each being its prompt."""
    rng = np.random.default_rng(0)
    whole = [rng.integers(3, vocabulary, size=length) for length in lengths]
    return Work(
        [text[:prompt] for text in whole],
        [text[prompt:] for text in whole],
        rng.normal(size=len(whole)).astype(np.float32),
    )


def mixed_lengths(count: int, shortest: int = 64, longest: int = 1024, mean: int = 300) -> list[int]:
    """Lengths with this mean, most of them short, as responses are: quantiles of a beta distribution, shuffled."""
    exponent = (longest - mean) / (mean - shortest)
    places = (np.arange(count) + 0.5) / count
    lengths = shortest + (longest - shortest) * (1 - (1 - places) ** (1 / exponent))
    lengths[-1] = longest
    np.random.default_rng(0).shuffle(lengths)
    return [int(length) for length in lengths]
