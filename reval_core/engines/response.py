"""A response: one record on its whole way, from the request to an engine to the row of a shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from reval_core.config import GoldMode

FinishReason = Literal["stop", "length", "partial"]


@dataclass(frozen=True, slots=True)
class Response:
    """One response to a prompt: requested, interrupted, complete, or imported.

    An engine is given the record without tokens, or with those of an interrupted response, and returns it with
    more. Of an imported response, seed, log-probs and policies are not known. Sequences have one element per token.
    """

    prompt_id: str
    problem: str
    gold: str | None
    """The gold answer; None if `given_reward` takes its place."""
    gold_mode: GoldMode
    """What a gold answer that lists several values requires."""
    problem_set: str
    sample: int = 0
    """Its number among the responses to this problem, from 0."""
    prompt: str = ""
    """The problem as rendered for the model."""
    prompt_tokens: Sequence[int] = ()
    seed: int | None = None
    """Seeds all randomness of its tokens. An engine that does not stream is reproducible with it."""
    tokens: Sequence[int] = ()
    """Token ids. The last one is a stop token if `finish_reason` is `stop`."""
    logprobs: Sequence[float] | None = ()
    """log π of each token at the sampling temperature, in nats, as computed by the engine; None if not known."""
    policy_rounds: Sequence[int] | None = ()
    """The round of the policy that wrote each token; None if not known."""
    finish_reason: FinishReason = "partial"
    """`stop`: a stop token was sampled; `length`: the maximum length was reached; `partial`: more is to come."""
    text: str | None = None
    """The text as it was imported; None if it is that of the tokens."""
    given_reward: float | None = None
    """The reward that it was imported with."""
    place: str = field(default="", compare=False)
    """The file and the line or row that it was imported from, for error messages."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to generate."""
        return self.finish_reason != "partial"

    def extended(self, tokens: Sequence[int], logprobs: Sequence[float], finish_reason: FinishReason) -> Response:
        """The response with the tokens that an engine appended."""
        assert self.logprobs is not None, "an imported response is complete"
        return replace(
            self,
            tokens=[*self.tokens, *tokens],
            logprobs=[*self.logprobs, *logprobs],
            finish_reason=finish_reason,
        )

    def written_by(self, policy_round: int) -> Response:
        """The response, with all tokens that have no policy yet as written by the policy of this round."""
        assert self.policy_rounds is not None, "an imported response was written by an unknown policy"
        new = len(self.tokens) - len(self.policy_rounds)
        return replace(self, policy_rounds=[*self.policy_rounds, *[policy_round] * new])
