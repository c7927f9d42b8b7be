"""Responses for tests of engines and stages."""

from __future__ import annotations

from collections.abc import Sequence

from reval_core.engines.response import Response


def request(
    prompt_tokens: Sequence[int], seed: int, tokens: Sequence[int] = (), problem: str = "1+2=", sample: int = 0
) -> Response:
    """A response to be generated, or continued after `tokens`."""
    blank = Response("p", problem, "3", "any", "sums", sample, problem, prompt_tokens, seed)
    return blank.extended(tokens, [-1.0] * len(tokens), "partial") if tokens else blank
