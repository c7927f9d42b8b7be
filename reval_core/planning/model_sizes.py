"""The sizes of a model that the estimates of memory and time depend on."""

from __future__ import annotations

from dataclasses import dataclass

from reval_core.config import Model
from reval_core.model.loading import architecture, count_parameters

FLOAT, HALF = 4, 2
"""Bytes of a number in float32 and in bfloat16."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model."""

    parameters: int
    trained: int
    layers: int
    width: int
    attention: int
    """A: heads × head size."""
    keys: int
    """G: key-value heads × head size."""
    feed_forward: int
    vocabulary: int
    tied: bool
    """Whether the head is tied to the embedding."""
    context: int | None
    """Maximum context length in tokens, if the model specifies one."""

    @classmethod
    def of(cls, model: Model) -> Sizes:
        """The sizes of a model, from its config alone. Raises InputError if it has none."""
        numbers = architecture(model)
        parameters, trained = count_parameters(model)
        heads = getattr(numbers, "num_attention_heads", None) or 1
        head = getattr(numbers, "head_dim", None) or numbers.hidden_size // heads
        return cls(
            parameters=parameters,
            trained=trained,
            layers=numbers.num_hidden_layers,
            width=numbers.hidden_size,
            attention=heads * head,
            keys=(getattr(numbers, "num_key_value_heads", None) or heads) * head,
            feed_forward=getattr(numbers, "intermediate_size", None) or 4 * numbers.hidden_size,
            vocabulary=numbers.vocab_size,
            tied=bool(numbers.tie_word_embeddings),
            context=getattr(numbers, "max_position_embeddings", None),
        )

    def cache_a_token(self, bytes_each: int) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.keys * bytes_each

    @property
    def ends(self) -> int:
        """Parameters of the embedding and the head."""
        return self.vocabulary * self.width * (1 if self.tied else 2)
