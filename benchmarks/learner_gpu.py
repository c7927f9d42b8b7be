"""A training step of a Qwen3-0.6B-shaped model with random weights on a GPU: tokens/s, MFU and peak memory.

Next to prime-rl's published figures for one H100 at a sequence of 16,384: 11,896 tokens/s, MFU 11.1%, 12.5 GiB.
Needs torch and transformers alone.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.learner_cases import batch_of, inputs
from benchmarks.meter import measure
from benchmarks.workloads import VOCABULARY, texts
from reval_core.learning.copy import LowPrecisionCopy
from reval_core.objectives import reval
from reval_core.scoring import score

LENGTH = 16_384
STEPS = 5
DEVICE = torch.device("cuda")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, by the makers."""
PRIME_RL = {"tokens_per_second": 11_896, "mfu": 0.111, "peak_gib": 12.5}


def model_on_gpu() -> Qwen3ForCausalLM:
    """Qwen3-0.6B's shape; layers keep no activations."""
    torch.manual_seed(0)
    with DEVICE:
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=VOCABULARY,
                hidden_size=1024,
                intermediate_size=3072,
                num_hidden_layers=28,
                num_attention_heads=16,
                num_key_value_heads=8,
                head_dim=128,
                max_position_embeddings=LENGTH,
                tie_word_embeddings=True,
            )
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()  # checkpointing is for training mode; this model has no dropout


def flops_a_token(model: Qwen3ForCausalLM) -> float:
    """Operations of forward and backward, without what checkpointing repeats: 6 a weight, and causal attention."""
    config = model.config
    weights = sum(parameter.numel() for parameter in model.parameters())
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * LENGTH / 2
    return 6 * weights + attention


def measure_all() -> dict[str, Any]:
    """Medians over some steps. Raises SystemExit where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here: nothing was measured")
    device = torch.cuda.get_device_name()
    model = model_on_gpu()
    weights = LowPrecisionCopy(model, seed=0)
    optimizer = torch.optim.AdamW(weights.masters.values(), lr=1e-6, fused=True)
    work = texts([LENGTH], VOCABULARY, prompt=512)
    batch = batch_of(work, [0]).to(DEVICE)

    def step() -> None:
        scores = score(model, batch)
        reval(inputs(scores, batch, work, [0]), beta=0.1).loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(weights.masters.values(), 1.0)
        optimizer.step()
        weights.refresh()
        optimizer.zero_grad(set_to_none=True)

    step()
    held = torch.cuda.memory_allocated()
    readings = [measure(step, on_gpu=True) for _ in range(STEPS)]
    rate = LENGTH / statistics.median(reading.seconds for reading in readings)
    peak = held + max(reading.peak_above for reading in readings)
    known = [flops for name, flops in PEAK_FLOPS.items() if name in device]
    found = {
        "device": device,
        "length": LENGTH,
        "tokens_per_second": rate,
        "mfu": rate * flops_a_token(model) / known[0] if known else None,
        "peak_gib": peak / 2**30,
        "prime_rl_published": PRIME_RL,
    }
    for name, value in found.items():
        print(f"{name:20} {value}")
    return found
