"""What stops a run before a bad update spoils its weights, naming the trajectories at fault."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

import numpy as np

from reval_core.errors import RunStopped

_WINDOW = 100
_ENOUGH = 10
"""A median of fewer gradients says nothing yet."""


class Guard:
    """Looks at every update between its backward pass and its step."""

    def __init__(self, spike_limit: float | None) -> None:
        self._limit = spike_limit
        self.norms: deque[float] = deque(maxlen=_WINDOW)
        """The norms of the last gradients. A checkpoint keeps them."""

    def check(self, ids: np.ndarray, loss: np.ndarray, norm: float, usual: bool = True) -> None:
        """Raise RunStopped if a loss [B] or the gradient's norm is not finite, or the norm is a spike.

        usual: whether the norm tells what is usual; that of a draw without a residual does not.
        """
        if not np.isfinite(loss).all():
            raise RunStopped(
                f"the loss is not finite for trajectories {_first(ids[~np.isfinite(loss)])}; "
                "look at them with reval sql; the weights are those of before this update"
            )
        largest = _first(ids[np.argsort(-np.abs(loss))])
        if not np.isfinite(norm):
            raise RunStopped(f"the gradient is not finite; the largest losses are of trajectories {largest}")
        middle = median(self.norms) if len(self.norms) >= _ENOUGH else np.inf
        if self._limit is not None and norm > self._limit * middle:
            raise RunStopped(
                f"the gradient's norm is {norm:.3g}, {norm / middle:.1f} times the median of the last "
                f"{len(self.norms)} updates (learner.spike_limit: {self._limit:g}); "
                f"the largest losses are of trajectories {largest}"
            )
        if usual and norm > 0:
            self.norms.append(norm)


def _first(ids: Sequence[int] | np.ndarray) -> list[int]:
    return [int(one) for one in ids[:5]]
