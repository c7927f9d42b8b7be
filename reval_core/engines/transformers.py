"""Generation with transformers' `generate` and the learner's own model, without a second copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from reval_core.engines.engine import Enough, Sampling
from reval_core.engines.response import Response
from reval_core.model.layers import as_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersEngine:
    """Samples each token by inverse transform sampling, with one uniform number per (request, step).

    No global random state is read, and a request's random numbers do not depend on the rest of the batch.
    """

    name = "transformers"
    streams = False
    dtype = None

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id
        self._model: PreTrainedModel | None = None

    def load(self, model: PreTrainedModel, policy: str) -> None:
        """Generate with `model` from now on. The weights are shared, so updates of the model take effect here."""
        self._model = model

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Response], sampling: Sampling, enough: Enough | None = None
    ) -> Iterator[tuple[int, Response]]:
        """Extend every request, in order, in one padded batch."""
        assert self._model is not None, "load() must be called first"
        model: Any = self._model
        longest = max(len(request.prompt_tokens) for request in requests)
        prompts = torch.full((len(requests), longest), self._pad)
        attention = torch.zeros_like(prompts)
        for row, request in enumerate(requests):
            prompts[row, longest - len(request.prompt_tokens) :] = torch.tensor(request.prompt_tokens)
            attention[row, longest - len(request.prompt_tokens) :] = 1
        sampler = _InverseSampler(_uniforms(requests, sampling.max_tokens).to(model.device), sampling.temperature)
        settings = GenerationConfig(
            do_sample=False,  # the logits processor samples and leaves a single candidate
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(sampling.stop_ids),
            pad_token_id=self._pad,
        )
        with as_loaded(model), _own_generation_settings(model, settings):
            tokens = model.generate(
                prompts.to(model.device),
                attention_mask=attention.to(model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([sampler]),
            )
        responses = tokens[:, longest:].tolist()
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()
        written = zip(requests, responses, logprobs, strict=True)
        return enumerate([_extended(*one, sampling.stop_ids) for one in written])

    def release_memory(self) -> None:
        """Does nothing: the weights are the learner's."""

    def close(self) -> None:
        """Drop the reference to the model."""
        self._model = None


def _extended(request: Response, tokens: list[int], logprobs: list[float], stop_ids: tuple[int, ...]) -> Response:
    for place, token in enumerate(tokens):
        if token in stop_ids:
            return request.extended(tokens[: place + 1], logprobs[: place + 1], "stop")
    return request.extended(tokens, logprobs, "length")


class _InverseSampler(LogitsProcessor):
    """Chooses the token at which the cumulative distribution exceeds the step's uniform number."""

    def __init__(self, uniforms: Tensor, temperature: float) -> None:
        self._uniforms = uniforms
        self._temperature = temperature
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = (scores.double() / self._temperature).log_softmax(dim=-1)
        cumulative = logprobs.exp().cumsum(dim=-1)
        threshold = self._uniforms[:, len(self.logprobs)].unsqueeze(1) * cumulative[:, -1:]
        chosen = (cumulative <= threshold).sum(dim=-1, keepdim=True)
        self.logprobs.append(logprobs.gather(1, chosen).squeeze(1).float())
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _uniforms(requests: Sequence[Response], steps: int) -> Tensor:
    """Uniform numbers in [0, 1) [B, steps]; each row depends only on its request's seed."""
    generator = torch.Generator()
    rows = torch.empty(len(requests), steps, dtype=torch.float64)
    for row, request in enumerate(requests):
        assert request.seed is not None, "only imported responses have no seed"
        rows[row].uniform_(generator=generator.manual_seed(request.seed))
    return rows


@contextmanager
def _own_generation_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Disable the model's own decoding parameters (repetition penalty, top-p), which would change the policy."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before
