"""The weights that a model had before an update, kept on the CPU, to compute with again for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Snapshot:
    """The trained parameters of a model as they were when this was made; of a low-precision copy, the copy."""

    def __init__(self, model: nn.Module) -> None:
        self._weights: dict[str, Tensor] = {
            name: one.detach().to("cpu", copy=True) for name, one in model.named_parameters() if one.requires_grad
        }

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Let `model` hold these weights while the context lasts; afterwards its own are back, to the bit.

        The two change places tensor by tensor, so the device never holds both models.
        """
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for name, kept in self._weights.items():
            own = parameters[name].detach().to("cpu", copy=True)
            parameters[name].copy_(kept)
            self._weights[name] = own
