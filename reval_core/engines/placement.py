"""Where the replicas of an engine run: each on GPUs of its own, or on processor cores of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from reval_core.config import VllmEngine
from reval_core.errors import InputError


@dataclass(frozen=True)
class Place:
    """The devices of one replica."""

    on_gpu: bool
    devices: tuple[str, ...]
    """Ids of GPUs as in CUDA_VISIBLE_DEVICES, or of processor cores."""
    count: int
    """The number of replicas."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that keep a vLLM process on these devices."""
        ids = ",".join(self.devices)
        return {"CUDA_VISIBLE_DEVICES": ids} if self.on_gpu else {"VLLM_CPU_OMP_THREADS_BIND": ids}

    def __str__(self) -> str:
        kind = "GPU" if self.on_gpu else "core"
        return f"{kind}{'s' if len(self.devices) > 1 else ''} {', '.join(self.devices)}"


def places(settings: VllmEngine) -> list[Place]:
    """The place of each replica on this machine; empty if the engine has none.

    Raises:
        InputError: The machine has too few GPUs or cores, or no GPU that `auto` could count.
    """
    if settings.replicas is None:
        return []
    on_gpu = torch.cuda.is_available()
    devices = _gpus() if on_gpu else [str(core) for core in sorted(os.sched_getaffinity(0))]
    count = _count(settings, on_gpu, len(devices))
    each = settings.tensor_parallel_size if on_gpu else len(devices) // count
    return [Place(on_gpu, tuple(devices[one * each : (one + 1) * each]), count) for one in range(count)]


def replica_count(settings: VllmEngine, gpus: int) -> int:
    """The number of vLLM engines or servers of a run on a machine with `gpus` GPUs."""
    if settings.replicas == "auto":
        return gpus // settings.tensor_parallel_size
    return settings.replicas or 1


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _count(settings: VllmEngine, on_gpu: bool, devices: int) -> int:
    each = settings.tensor_parallel_size if on_gpu else 1
    if settings.replicas != "auto":
        assert settings.replicas is not None
        if settings.replicas * each > devices:
            kind, group = ("GPUs", f" with engine.tensor_parallel_size: {each}") if on_gpu else ("cores", "")
            raise InputError(
                f"engine.replicas: {settings.replicas}{group} needs {settings.replicas * each} {kind}, but this "
                f"machine has {devices}; set {devices // each} or less"
            )
        return settings.replicas
    if not on_gpu:
        raise InputError("engine.replicas: auto is one per GPU, and this machine has none; set a number")
    if devices < each:
        raise InputError(f"engine.tensor_parallel_size: {each} exceeds the number of GPUs ({devices})")
    return replica_count(settings, devices)
