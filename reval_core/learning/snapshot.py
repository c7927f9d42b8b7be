"""The weights of a model before an update, kept on the CPU, to compute with them once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Snapshot:
    """The trained parameters of a model at the time of creation; for a low-precision copy, the copy itself."""

    def __init__(self, model: nn.Module) -> None:
        self._weights: dict[str, Tensor] = {
            name: one.detach().to("cpu", copy=True) for name, one in model.named_parameters() if one.requires_grad
        }

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Load these weights into `model` inside the context; afterwards its own are restored bit for bit.

        They are exchanged tensor by tensor, so the device never holds both models.
        """
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for name, saved in self._weights.items():
            own = parameters[name].detach().to("cpu", copy=True)
            parameters[name].copy_(saved)
            self._weights[name] = own
