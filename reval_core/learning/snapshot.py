"""The weights of a model before an update, kept on the CPU, to compute with them once more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Snapshot:
    """The weights that compute, at the time of creation; for a low-precision copy, the copy itself."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._own = weights
        self._saved = {name: one.detach().to("cpu", copy=True) for name, one in weights.items()}

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the saved values into the weights inside the context; afterwards their own are restored bit for bit.

        They are exchanged tensor by tensor, so the device never holds both.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, saved in self._saved.items():
            self._saved[name] = self._own[name].detach().to("cpu", copy=True)
            self._own[name].copy_(saved)
