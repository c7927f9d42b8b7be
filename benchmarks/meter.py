"""Time and peak memory of a function, on Linux or on a GPU. Needs only torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Reading:
    """The cost of one call."""

    seconds: float
    peak_above: int
    """Peak bytes above the memory at the start of the call."""


def measure(work: Callable[[], Any], on_gpu: bool = False) -> Reading:
    """Run `work` once, and measure the memory of the GPU or of the process."""
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        held = _kibibytes("VmRSS") * 1024
    started = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if on_gpu else _kibibytes("VmHWM") * 1024
    return Reading(seconds, peak - held)


def _kibibytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}: memory can be measured on Linux only")
