"""A training step of a Qwen3-0.6B-shaped model on a GPU: useful tokens/s and peak memory per case.

Each step scores its micro-batches, forms ReVal's loss, runs backward, clips, takes AdamW's step on the float32
masters and rounds the copy again. Next to prime-rl's published figures for one H100 at a sequence of 16,384:
11,896 tokens/s, MFU 11.1%, 12.5 GiB. Needs only torch, transformers and numpy.
"""

from __future__ import annotations

import statistics
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_model import ModelSource, Shape
from benchmarks.learner_cases import batch_of, inputs
from benchmarks.meter import measure
from benchmarks.record import Limits, misses
from benchmarks.workloads import Work, texts
from reval_core.model.layers import as_loaded, checkpointed_layers
from reval_core.model.scoring import score
from reval_core.model.token_batch import micro_batches
from reval_core.objectives import reval

BUDGET = 16_384
"""Maximum tokens per micro-batch."""
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations per second, by the manufacturers."""
PRIME_RL = {"tokens_per_second": 11_896, "mfu": 0.111, "peak_gib": 12.5}


@dataclass(frozen=True)
class Case:
    """The texts of one step and its settings."""

    lengths: Sequence[int]
    checkpointing: bool = True
    compiled: bool = True
    packed: bool = False
    together: bool = False
    """All texts are one micro-batch, regardless of its size."""
    steps: int = 3
    """The number of timed steps, after one warm-up step."""
    at_least: float | None = None
    """Tokens per second on an H100 or H200."""
    below_gib: float | None = None

    @property
    def limits(self) -> Limits:
        """What an H100 or H200 should reach."""
        speed: Limits = {"tokens_per_second": ("at least", self.at_least)} if self.at_least else {}
        return {**speed, **({"peak_gib": ("at most", self.below_gib)} if self.below_gib else {})}

    def groups(self, lengths: Sequence[int], budget: int) -> list[list[int]]:
        """The rows of each micro-batch."""
        if self.together:
            return [list(range(len(lengths)))]
        return list(micro_batches(lengths, budget, self.packed))


MIXED = tuple(map(int, np.linspace(200, 3000, 16)))
STREAM = tuple(
    int(length * shorter)
    for length in np.linspace(4000, 300, 14).round()
    for shorter in np.linspace(1.0, 0.95, BUDGET // int(length))
)
"""14 micro-batches of similar token counts, each of rows of similar length, and no two of the same shape."""

CASES: dict[str, Case] = {
    "1 x 16384": Case([BUDGET], checkpointing=False, at_least=40_000, below_gib=32),
    "1 x 16384, checkpointing": Case([BUDGET], at_least=34_000, below_gib=12),
    "1 x 16384, checkpointing, plain": Case([BUDGET], compiled=False, steps=2),
    "8 x 4096": Case([4096] * 8, together=True),
    "16 x 1024": Case([1024] * 16, together=True),
    "16 mixed": Case(MIXED, together=True, at_least=30_000),
    "16 mixed, plain": Case(MIXED, together=True, compiled=False, steps=2),
    "16 mixed, packed": Case(MIXED, together=True, packed=True),
    "stream": Case(STREAM, checkpointing=False, steps=2, at_least=60_000),
    "stream, checkpointing": Case(STREAM, steps=2),
}


def check(source: ModelSource) -> dict[str, Any]:
    """All cases, each with its error, if any; prints a line per case."""
    optimizer = source.optimizer()
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            found[name] = measured(source, case, optimizer)
        except Exception as error:  # the other cases are still measured
            optimizer.zero_grad(set_to_none=True)
            found[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
            traceback.print_exc()
        _show(name, found[name])
    found["the update alone"] = update_seconds(source, optimizer)
    _show("the update alone", found["the update alone"])
    if source.on_gpu:
        torch.cuda.empty_cache()  # other processes use the GPU after this
    return found


def measured(source: ModelSource, case: Case, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Medians over a case's steps. The first, which compiles, is timed separately."""
    shape = source.shape
    lengths = shape.lengths(*case.lengths)
    work = texts(lengths, shape.vocabulary, prompt=min(256, min(lengths) // 2))
    groups = case.groups(lengths, shape.lengths(BUDGET)[0])
    if source.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if case.compiled else as_loaded(source.model))
        stack.enter_context(checkpointed_layers(source.model) if case.checkpointing else nullcontext())
        stack.enter_context(source.packed() if case.packed else nullcontext())
        step = _stepping(source, case, work, groups, optimizer)
        first = measure(step, source.on_gpu)
        readings = [measure(step, source.on_gpu) for _ in range(case.steps)]
    seconds = statistics.median(reading.seconds for reading in readings)
    found = {
        "tokens_per_second": work.tokens / seconds,
        "micro_batches": float(len(groups)),
        "first_step_seconds": first.seconds,
    }
    if source.on_gpu:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        known = [flops for name, flops in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()]
        if known:
            found["mfu"] = flops_of(source, lengths) / seconds / known[0]
    return found


def update_seconds(source: ModelSource, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The cost of a step besides forward and backward, independent of its tokens."""
    weights = source.weights
    for master in weights.masters.values():
        master.grad = torch.zeros_like(master)
    parts = {
        "clip": lambda: torch.nn.utils.clip_grad_norm_(weights.masters.values(), 1.0),
        "adamw": optimizer.step,
        "refresh": weights.refresh,
    }
    found = {}
    for name, part in parts.items():
        readings = [measure(part, source.on_gpu).seconds for _ in range(4)]
        found[f"{name}_seconds"] = statistics.median(readings[1:])
    optimizer.zero_grad(set_to_none=True)
    return found


def _show(name: str, figures: dict[str, Any]) -> None:
    shown = (
        f"{key} {value:,.4g}" if isinstance(value, float) else str(value)[:200] for key, value in figures.items()
    )
    print(f"    {name}: {', '.join(shown)}", flush=True)


def _stepping(
    source: ModelSource, case: Case, work: Work, groups: list[list[int]], optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    def step() -> None:
        for rows in groups:
            batch = batch_of(work, rows, case.packed).to(source.device)
            losses = reval(inputs(score(source.model, batch), batch, work, rows), beta=0.1).loss
            (losses.sum() / len(work.prompts)).backward()
        source.step(optimizer)

    return step


def flops_of(source: ModelSource, lengths: Sequence[int]) -> float:
    """Operations of forward and backward, without recomputation: 6 per weight, and causal attention."""
    shape: Shape = source.shape
    weights = sum(parameter.numel() for parameter in source.model.parameters())
    attention = 12 * shape.layers * shape.heads * shape.head_size / 2
    return float(sum(6 * weights * length + attention * length**2 for length in lengths))


def failures(cases: dict[str, Any], device: str) -> list[str]:
    """Errors and missed limits of this device; there are limits only for H100 and H200."""
    said = [f"{name}: {found['error']}" for name, found in cases.items() if "error" in found]
    if not any(name in device for name in ("H100", "H200")):
        return said
    measured = {name: case for name, case in CASES.items() if name in cases}
    return said + [
        f"{name}: {miss}" for name, case in measured.items() for miss in misses(cases[name], case.limits)
    ]
