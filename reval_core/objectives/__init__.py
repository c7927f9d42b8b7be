"""The objectives: pure functions from what is known of a batch to a loss and a residual for each trajectory.

Each takes `Inputs` and its settings, and gives `Outputs`. docs/objectives.md shows how to add one.
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
    regression,
    residual_objective,
    reval,
    step_residuals,
    tbrm,
    value_term,
)
from reval_core.user_code import code_digest, load_function

__all__ = [
    "Inputs",
    "Objective",
    "Outputs",
    "grpo",
    "make_objective",
    "objective_identity",
    "regression",
    "residual_objective",
    "reval",
    "step_residuals",
    "tbrm",
    "value_term",
]

_COLUMNS = ("loss", "delta", "value_term", "log_ratio")

_RESERVED = {*_COLUMNS, "quiet", "pulls"}
"""Names that the learner's own figures have."""

Objective = Callable[[Inputs], Outputs]
"""An objective with its settings filled in."""

_BUILT_IN: Mapping[str, Callable[..., Outputs]] = {
    "reval": reval,
    "tbrm": tbrm,
    "regression": regression,
    "grpo": grpo,
}


def make_objective(kind: str, mask_truncated: bool = False, **settings: Any) -> Objective:
    """The objective that a config's section `objective` describes, with its settings filled in.

    mask_truncated: a response that was cut at the length limit has no loss. Departs from the mean over the draw:
        the mean is still over all of it, but nothing is learned from a response whose end nobody saw.
    """
    if kind == "custom":
        name = settings["function"]
        objective = partial(_checked, name, partial(load_function(name), **settings["settings"]))
    else:
        objective = partial(_BUILT_IN[kind], **settings)
    return partial(_without_truncated, objective) if mask_truncated else objective


def objective_identity(kind: str, **settings: Any) -> list[Any]:
    """What names an objective: its settings, and the code of one of a user's own."""
    return [kind, settings, code_digest(settings["function"]) if kind == "custom" else None]


def _checked(name: str, objective: Objective, inputs: Inputs) -> Outputs:
    outputs = objective(inputs)
    columns = {one: getattr(outputs, one) for one in _COLUMNS}
    for one, column in [*columns.items(), *outputs.metrics.items()]:
        if column.shape != inputs.reward.shape:
            raise InputError(
                f"objective.function: {name} gives {one} of shape {list(column.shape)}; "
                f"it must be one number a trajectory, {list(inputs.reward.shape)}"
            )
    if _RESERVED & outputs.metrics.keys():
        raise InputError(f"objective.function: {name} names a metric like one of {', '.join(sorted(_RESERVED))}")
    return outputs


def _without_truncated(objective: Objective, inputs: Inputs) -> Outputs:
    outputs = objective(inputs)
    return replace(outputs, loss=torch.where(inputs.truncated, torch.zeros_like(outputs.loss), outputs.loss))
