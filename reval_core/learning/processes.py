"""The process groups of a run: gradients and weights on the devices, messages and tensors on the CPU over gloo.

The processes wait for each other in gloo, which sleeps: a process that waits for hours while responses are
generated uses neither its processor nor its GPU. Accelerate joins the processes and places them on devices; one
process alone needs only torch.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed

from reval_core import launch

_PATIENCE = timedelta(days=1)
"""How long the processes wait for each other: longer than a round of rollouts may take."""

LARGEST_MESSAGE = 4096
"""The bytes of a message, padded to this size: a stage's name and where its inputs are, never the inputs."""


@dataclass(frozen=True)
class Announcement:
    """A message that the first process has sent, for `trace`."""

    operation: str
    size: int
    """The bytes of the message."""
    seconds: float
    """The time that the first process spent on it, until all others had received it."""


trace: list[Announcement] = []
"""The announcements of this process."""


def start() -> torch.device:
    """Join the other launched processes, if there are any. Returns the device of this process."""
    on_gpu = torch.cuda.is_available()
    if launch.count() == 1:
        return torch.device("cuda" if on_gpu else "cpu")
    from accelerate import PartialState  # one per process: later calls return the same state

    device: torch.device = PartialState(cpu=not on_gpu, backend="cuda:nccl,cpu:gloo" if on_gpu else "gloo").device
    return device


@cache
def control() -> distributed.ProcessGroup:
    """The gloo group for messages and tensors on the CPU. Every process must call it first at the same point."""
    start()
    return distributed.new_group(backend="gloo", timeout=_PATIENCE)


def announce(message: dict[str, Any]) -> None:
    """Send a message to all processes that wait in `receive`. Returns when all have received it."""
    started = time.perf_counter()
    text = json.dumps(message).encode()
    assert len(text) <= LARGEST_MESSAGE, f"{message['operation']}: a message names inputs and does not carry them"
    padded = torch.frombuffer(bytearray(text.ljust(LARGEST_MESSAGE)), dtype=torch.uint8)
    distributed.broadcast(padded, 0, group=control())
    distributed.barrier(group=control())
    trace.append(Announcement(message["operation"], len(text), time.perf_counter() - started))


def receive() -> dict[str, Any]:
    """Wait for the next message of the first process."""
    padded = torch.empty(LARGEST_MESSAGE, dtype=torch.uint8)
    distributed.broadcast(padded, 0, group=control())
    distributed.barrier(group=control())
    message: dict[str, Any] = json.loads(padded.numpy().tobytes())
    return message


def share(tensor: Tensor) -> None:
    """Overwrite a CPU tensor with that of the first process. Collective."""
    distributed.broadcast(tensor, 0, group=control())


def send(tensor: Tensor) -> None:
    """Send a CPU tensor to the first process."""
    distributed.send(tensor, 0, group=control())


def take(tensor: Tensor, rank: int) -> Tensor:
    """Receive a CPU tensor from a process, into `tensor`."""
    distributed.recv(tensor, rank, group=control())
    return tensor


def gathered(values: Any) -> list[Any]:
    """The values of all processes, by rank, in every process. Collective."""
    if launch.count() == 1:
        return [values]
    found: list[Any] = [None] * launch.count()
    distributed.all_gather_object(found, values, group=control())
    return found


def total(tensor: Tensor, group: distributed.ProcessGroup | None = None) -> Tensor:
    """Add the tensors of all processes, in place. Collective."""
    distributed.all_reduce(tensor, group=group)
    return tensor
