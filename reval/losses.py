"""The losses of reval for a trainer of one's own: pure functions of tensors, on any device.

B is the number of trajectories in a batch and H the length of the longest response. Each function returns one loss
per trajectory; a trainer descends `outputs.loss.mean()`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from reval_core import objectives
from reval_core.objectives import Inputs, Outputs

__all__ = ["Inputs", "Outputs", "grpo", "regression", "reval", "tbrm"]


def reval(
    logprobs: Tensor,
    value: Tensor,
    *,
    log_ref: Tensor,
    value_ref: Tensor,
    reward: Tensor,
    beta: float,
    mask: Tensor | None = None,
    huber: float | None = None,
    clip: float | None = None,
    length_normalised: bool = False,
) -> Outputs:
    """ReVal (arXiv 2603.23355, Eq. 2): the squared trajectory-level Bellman residual.

    loss = Δ², Δ = [V_θ(s_1) − V_ref(s_1)] + log π_θ(τ) − log π_ref(τ) − r(τ)/β. The gradient flows through
    `logprobs` and `value`.

    Args:
        logprobs: log π_θ(a_h|s_h) [B, H] in nats, at temperature 1.
        value: V_θ(s_1) [B], the log-sum-exp of the logits at the last token of the prompt.
        log_ref: log π_ref(τ) [B], the sum over the response under the reference policy.
        value_ref: V_ref(s_1) [B].
        reward: r(τ) [B].
        beta: The strength of the KL regularization; > 0.
        mask: [B, H] bool, true on the tokens that the policy wrote; by default all. Others do not count.
        huber: The loss is linear beyond |Δ| = huber.
        clip: Δ is clipped to ±clip, which leaves no gradient beyond.
        length_normalised: Divide the loss by the tokens of the response.

    Returns:
        Tensors [B]: `loss`, and without gradient `delta` (Δ), its parts `value_term` and `log_ratio`, `metrics`.

    Raises:
        ValueError: A shape does not fit, or beta is not positive.
    """
    inputs = _residual_inputs(logprobs, value, log_ref, value_ref, reward, beta, mask)
    return objectives.reval(inputs, beta, huber=huber, clip=clip, length_normalised=length_normalised)


def tbrm(
    logprobs: Tensor,
    value: Tensor,
    *,
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    mask: Tensor | None = None,
    huber: float | None = None,
    clip: float | None = None,
    length_normalised: bool = False,
) -> Outputs:
    """TBRM (arXiv 2505.15311): `reval` with V_θ(s_1) in place of V_θ(s_1) − V_ref(s_1).

    For the arguments, the result and the errors see `reval`.
    """
    inputs = _residual_inputs(logprobs, value, log_ref, torch.zeros_like(log_ref), reward, beta, mask)
    return objectives.tbrm(inputs, beta, huber=huber, clip=clip, length_normalised=length_normalised)


def regression(
    logprobs: Tensor,
    *,
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    mask: Tensor | None = None,
    huber: float | None = None,
    clip: float | None = None,
    length_normalised: bool = False,
) -> Outputs:
    """The regression variant (arXiv 2603.23355, Eq. 8): `reval` without V.

    For the arguments, the result and the errors see `reval`.
    """
    zero = torch.zeros_like(log_ref)
    inputs = _residual_inputs(logprobs, zero, log_ref, zero, reward, beta, mask)
    return objectives.regression(inputs, beta, huber=huber, clip=clip, length_normalised=length_normalised)


def grpo(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    advantage: Tensor,
    engine_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    importance_cap: float = 2.0,
    mean: Literal["sequence", "token"] = "sequence",
) -> Outputs:
    """GRPO (arXiv 2402.03300) with clip-higher (arXiv 2503.14476), without a KL term.

    Args:
        logprobs: log π_θ(a_h|s_h) [B, H] in nats, at the temperature of sampling.
        old_logprobs: The same under the policy that wrote the responses, as the trainer computes it [B, H].
        advantage: (r − mean) / standard deviation within the group of a prompt [B].
        engine_logprobs: `old_logprobs` as the engine reported them [B, H], for the truncated importance correction;
            without them there is no correction.
        mask: [B, H] bool, true on the tokens that the policy wrote; by default all. Others do not count.
        clip_low: The probability ratio is clipped below at 1 − clip_low.
        clip_high: The probability ratio is clipped above at 1 + clip_high.
        importance_cap: The cap of the correction.
        mean: `sequence` averages over each response's tokens; `token` over all tokens of this batch (DAPO).

    Returns:
        Tensors [B]: `loss`, and `metrics` (`clipped`, `corrected`, `kl`); `delta` and its parts are 0.

    Raises:
        ValueError: A shape does not fit.
    """
    engine = old_logprobs if engine_logprobs is None else engine_logprobs
    zero = torch.zeros_like(advantage)
    inputs = _inputs(
        logprobs, mask, old_logprobs=old_logprobs, engine_logprobs=engine, advantage=advantage, reward=zero,
        value=zero, log_ref=zero, value_ref=zero,
    )  # fmt: skip
    outputs = objectives.grpo(inputs, clip_low, clip_high, importance_cap, mean)
    return Outputs(outputs.loss, zero, zero, zero, outputs.metrics)


def _residual_inputs(
    logprobs: Tensor,
    value: Tensor,
    log_ref: Tensor,
    value_ref: Tensor,
    reward: Tensor,
    beta: float,
    mask: Tensor | None,
) -> Inputs:
    if not beta > 0:
        raise ValueError(f"beta: must be positive, not {beta}")
    unused = torch.zeros_like(logprobs, requires_grad=False)
    return _inputs(
        logprobs, mask, old_logprobs=unused, engine_logprobs=unused, advantage=torch.zeros_like(reward),
        reward=reward, value=value, log_ref=log_ref, value_ref=value_ref,
    )  # fmt: skip


def _inputs(logprobs: Tensor, mask: Tensor | None, **others: Tensor) -> Inputs:
    if logprobs.dim() != 2:
        raise ValueError(f"logprobs: must be [B, H], not {list(logprobs.shape)}")
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask.bool()
    tokens: dict[str, Any] = {"logprobs": logprobs, "mask": mask}
    rows: dict[str, Any] = {}
    for name, tensor in others.items():
        (tokens if name.endswith("logprobs") else rows)[name] = tensor
    for name, tensor in (*tokens.items(), *rows.items()):
        expected = logprobs.shape if name in tokens else logprobs.shape[:1]
        if tensor.shape != expected:
            raise ValueError(f"{name}: must be {list(expected)} like logprobs, not {list(tensor.shape)}")
    for name in ("logprobs", "old_logprobs", "engine_logprobs"):
        tokens[name] = tokens[name].masked_fill(~mask, 0.0)
    return Inputs(
        **tokens,
        **rows,
        truncated=torch.zeros_like(rows["reward"], dtype=torch.bool),
        mean_tokens=float(mask.sum()) / len(logprobs),
    )
