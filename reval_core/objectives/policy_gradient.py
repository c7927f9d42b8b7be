"""The policy-gradient baseline: GRPO."""

from __future__ import annotations

from typing import Literal

import torch

from reval_core.objectives.inputs import Inputs, Outputs


def grpo(
    inputs: Inputs,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
    mean: Literal["sequence", "token"] = "sequence",
) -> Outputs:
    """GRPO (arXiv 2402.03300) with clip-higher (DAPO, arXiv 2503.14476), without a KL term.

    l_h = −c_h · min(ρ_h A, clip(ρ_h, 1 − clip_low, 1 + clip_high) A), with ρ_h = π_θ/π_old by the trainer and
    c_h = min(π_old/π_engine, importance_cap), the truncated correction for the trainer–engine mismatch.

    With one response per prompt, the advantage is the reward itself (mean 0, deviation 1), as in verl.

    Args:
        inputs: The batch.
        clip_low: The ratio ρ_h is clipped below at 1 − clip_low.
        clip_high: The ratio ρ_h is clipped above at 1 + clip_high.
        importance_cap: The cap of the engine correction c_h.
        mean: `sequence` is the mean of l_h over a response's tokens, then over responses, as in GRPO; `token` is
            the mean over all tokens of the update, as in DAPO, where long responses have more weight.

    Returns:
        The outputs, with the metrics, as shares or means over a response's tokens: `clipped`, `corrected` (c_h at
        its cap), and `kl`, the estimate ρ − 1 − log ρ of KL(π_old ‖ π_θ).
    """
    log_ratio = (inputs.logprobs - inputs.old_logprobs) * inputs.mask
    ratio = torch.exp(log_ratio)
    correction = torch.exp(inputs.old_logprobs - inputs.engine_logprobs)
    advantage = inputs.advantage.unsqueeze(1)
    unclipped = ratio * advantage
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    token_losses = -correction.clamp(max=importance_cap) * torch.minimum(unclipped, clipped) * inputs.mask
    loss = token_losses.sum(dim=1) / (inputs.tokens if mean == "sequence" else inputs.mean_tokens)
    with torch.no_grad():
        by_token = {
            "clipped": clipped < unclipped,
            "corrected": correction > importance_cap,
            "kl": ratio - 1 - log_ratio,
        }
        metrics = {name: (values * inputs.mask).sum(dim=1) / inputs.tokens for name, values in by_token.items()}
        zero = torch.zeros_like(inputs.value)
        return Outputs(loss, zero, zero, inputs.logprobs.sum(dim=1) - inputs.log_ref, metrics)
