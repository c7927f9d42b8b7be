"""The objectives: pure functions from the scores and rewards of a batch to a loss and a residual per trajectory.

Each takes `Inputs` and its settings and returns `Outputs`. docs/objectives.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from reval_core.errors import InputError
from reval_core.objectives.inputs import Inputs, Outputs
from reval_core.objectives.policy_gradient import grpo
from reval_core.objectives.residuals import (
    Residual,
    regression,
    residual,
    reval,
    step_residuals,
    tbrm,
)
from reval_core.user_code import code_digest, load_function

__all__ = [
    "Inputs",
    "Objective",
    "Outputs",
    "Residual",
    "grpo",
    "make_objective",
    "objective_identity",
    "regression",
    "residual",
    "reval",
    "step_residuals",
    "tbrm",
]

_COLUMNS = ("loss", "delta", "value_term", "log_ratio")

_RESERVED = {*_COLUMNS, "quiet", "pulls"}
"""Names that the learner's own metrics have."""

Objective = Callable[[Inputs], Outputs]
"""An objective with its settings filled in."""

_BUILT_IN: Mapping[str, Callable[..., Outputs]] = {
    "reval": reval,
    "tbrm": tbrm,
    "regression": regression,
    "grpo": grpo,
}


def make_objective(kind: str, mask_truncated: bool = False, **settings: Any) -> Objective:
    """Build the objective that the config section `objective` describes.

    Args:
        kind: The name of a built-in objective, or `custom`.
        mask_truncated: The loss of a response that was cut at the length limit is 0. Departs from the mean over the
            draw: the mean is still over all trajectories, but truncated responses contribute no gradient.
        settings: The objective's own settings; for `custom`, `function` and `settings`.

    Returns:
        The objective, with its settings filled in. One of a custom function raises InputError when the outputs have
        the wrong shape or a metric has a reserved name.
    """
    if kind == "custom":
        name = settings["function"]
        objective = partial(_checked, name, partial(load_function(name), **settings["settings"]))
    else:
        objective = partial(_BUILT_IN[kind], **settings)
    return partial(_without_truncated, objective) if mask_truncated else objective


def objective_identity(kind: str, **settings: Any) -> list[Any]:
    """What identifies an objective: its settings and, for a custom one, the digest of its code."""
    return [kind, settings, code_digest(settings["function"]) if kind == "custom" else None]


def _checked(name: str, objective: Objective, inputs: Inputs) -> Outputs:
    outputs = objective(inputs)
    columns = {one: getattr(outputs, one) for one in _COLUMNS}
    for one, column in [*columns.items(), *outputs.metrics.items()]:
        if column.shape != inputs.reward.shape:
            raise InputError(
                f"objective.function: {name} returns {one} of shape {list(column.shape)}; "
                f"it must be one number per trajectory, {list(inputs.reward.shape)}"
            )
    if _RESERVED & outputs.metrics.keys():
        raise InputError(
            f"objective.function: {name} returns a metric with a reserved name ({', '.join(sorted(_RESERVED))})"
        )
    return outputs


def _without_truncated(objective: Objective, inputs: Inputs) -> Outputs:
    outputs = objective(inputs)
    return replace(outputs, loss=torch.where(inputs.truncated, torch.zeros_like(outputs.loss), outputs.loss))
