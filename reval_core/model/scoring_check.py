"""Check that reval's log-probabilities agree with those of the model's own logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from reval_core.config import Learner
from reval_core.errors import InputError, first_line
from reval_core.model.layers import as_loaded, checkpointed_layers, set_up
from reval_core.model.low_precision import in_float32
from reval_core.model.scoring import score
from reval_core.model.token_batch import TokenBatch, collate

_TOLERANCE = 1e-3
"""In nats. The largest difference measured in float32 was 2e-5, with logits of 60."""

_NOISE = 0.05
"""The share of the logits' standard deviation that bfloat16 adds to the tolerance. Measured between layers in
bfloat16 and in float32: 0.01 to 0.056 for up to 48 layers; on a CPU two batch shapes agree to 1e-5."""


@torch.no_grad()
def check_scoring(model: PreTrainedModel, settings: Learner) -> None:
    """Check that `scoring.score` agrees with a log-softmax of the model's own logits, for two short texts.

    They differ if a model family transforms its logits in a way that `lm_head.Head` does not know, if packed
    trajectories attend to each other, if gradient checkpointing enables dropout, if a token attends to later
    tokens, or if padding on the right needs a mask. The model's own logits come from the layers as they were
    loaded. Logits are float32 on both sides, since rounding to bfloat16 moves a logit of 30 by up to 0.06.

    Args:
        model: The model in the learner's precision. It is set up to score as the learner does.
        settings: The config section `learner`.

    Raises:
        InputError: The log-probabilities differ or are NaN, or the layers cannot be compiled.
    """
    half = settings.precision == "bfloat16"
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rng = np.random.default_rng(0)
    texts = [rng.integers(vocabulary, size=length) for length in (9, 6)]
    batch = collate([text[:2] for text in texts], [text[2:] for text in texts], packed=settings.packed)
    set_up(model, settings.packed, settings.compiles_on(model.device.type))
    with _exact_head(model):
        with checkpointed_layers(model) if settings.gradient_checkpointing else nullcontext():
            logprobs = _our_logprobs(model, batch)
        for row, text in zip(logprobs, texts, strict=True):
            expected, deviation = _own_logprobs(model, text)
            tolerance = _TOLERANCE + (_NOISE * deviation if half else 0)
            shorter, _ = _own_logprobs(model, text[:-2])
            error = float((shorter - expected[:-2]).abs().max())
            if error >= tolerance:
                raise InputError(
                    f"model.path: {type(model).__name__} is not a causal language model: later tokens change the "
                    f"log-probability of a token by {error:.2g} nats"
                )
            ours = row[: len(text) - 2]
            _check_error(model, settings, float((ours - expected[1:]).abs().max()), tolerance)


def _check_error(model: PreTrainedModel, settings: Learner, error: float, tolerance: float) -> None:
    if np.isnan(error):
        raise InputError(
            f"model.path: {type(model).__name__} computes NaN as log-probabilities; its weights are corrupt"
        )
    if error < tolerance:
        return
    switches = [name for name in ("packed", "gradient_checkpointing") if getattr(settings, name)]
    switches += ["compile"] if settings.compiles_on(model.device.type) else []
    remedy = "".join(f"; try learner.{name}: false" for name in switches)
    raise InputError(
        f"model.path: reval's log-probabilities differ from the model's own by {error:.2g} nats: "
        f"{type(model).__name__} computes its logits in a way that reval does not know{remedy}"
    )


def _own_logprobs(model: PreTrainedModel, text: np.ndarray) -> tuple[Tensor, float]:
    """The model's own log-probabilities of all tokens but the first, and the standard deviation of its logits."""
    tokens = torch.from_numpy(text)
    with as_loaded(model):
        logits = model(tokens[None].to(model.device)).logits[0, :-1].float().cpu()
    logprobs = logits.log_softmax(dim=-1).gather(1, tokens[1:, None]).squeeze(1)
    return logprobs, float(logits.std())


def _our_logprobs(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """The log-probabilities of `score`. Raises InputError where torch cannot compile the layers."""
    try:
        return score(model, batch.to(model.device)).logprobs.cpu()
    except torch._dynamo.exc.TorchDynamoException as error:
        raise InputError(
            f"learner.compile: the layers of {type(model).__name__} cannot be compiled here ({first_line(error)}); "
            "set learner.compile: false"
        ) from error


@contextmanager
def _exact_head(model: PreTrainedModel) -> Iterator[None]:
    """Run the model's own head in float32 inside the context, as `lm_head.Head` does."""
    head = model.get_output_embeddings()
    forward = head.forward

    def exact(states: Tensor) -> Tensor:
        with in_float32(head):  # with tied weights, the embedding has been computed by now
            return forward(states.float())

    head.forward = exact
    try:
        yield
    finally:
        del head.forward
