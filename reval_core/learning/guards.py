"""Checks that stop a run before a non-finite or exploding update, naming the trajectories at fault."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

import numpy as np

from reval_core.errors import RunStopped

_WINDOW = 100
_LEAST_NORMS = 10
"""The gradient norms that a median needs to be meaningful."""


class Guard:
    """Checks every update between its backward pass and its optimizer step."""

    def __init__(self, spike_limit: float | None) -> None:
        self._limit = spike_limit
        self.norms: deque[float] = deque(maxlen=_WINDOW)
        """The norms of the most recent gradients, which are part of a checkpoint."""

    def check(self, ids: np.ndarray, loss: np.ndarray, norm: float, usual: bool = True) -> None:
        """Check the losses and the gradient norm of an update.

        Args:
            ids: The trajectories of the draw [B].
            loss: The loss of each trajectory [B].
            norm: The norm of the gradient.
            usual: Whether the norm enters the median; that of a skipped draw does not.

        Raises:
            RunStopped: A loss or the norm is not finite, or the norm is a spike.
        """
        if not np.isfinite(loss).all():
            raise RunStopped(
                f"the loss is not finite for trajectories {_first(ids[~np.isfinite(loss)])}; "
                "inspect them with reval sql; the weights are those before this update"
            )
        largest = _first(ids[np.argsort(-np.abs(loss))])
        if not np.isfinite(norm):
            raise RunStopped(f"the gradient is not finite; the largest losses are those of trajectories {largest}")
        middle = median(self.norms) if len(self.norms) >= _LEAST_NORMS else np.inf
        if self._limit is not None and norm > self._limit * middle:
            raise RunStopped(
                f"the gradient norm is {norm:.3g}, {norm / middle:.1f} times the median of the last "
                f"{len(self.norms)} updates (learner.spike_limit: {self._limit:g}); "
                f"the largest losses are those of trajectories {largest}"
            )
        if usual and norm > 0:
            self.norms.append(norm)


def _first(ids: Sequence[int] | np.ndarray) -> list[int]:
    return [int(one) for one in ids[:5]]
