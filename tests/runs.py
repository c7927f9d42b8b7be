"""Making small runs in tests, without Prefect."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reval.flows.rounds import train_rounds
from reval_core import stages
from reval_core.config import Config
from reval_core.pipeline.run_context import RunContext, open_run_context
from reval_core.report.summary import summarise
from reval_core.storage.run_directory import RunDirectory
from tests.conftest import SMALL


def small_config(**changes: Any) -> Config:
    """The small settings with changes such as `learner__updates=3`."""
    values = copy.deepcopy(SMALL)
    for name, value in changes.items():
        *path, last = name.split("__")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return Config.model_validate(values)


def run(path: Path, config: Config, until: int | None = None) -> dict[str, Any] | None:
    """Run a whole run and return its summary; with `until`, break off after that round's last stage."""
    directory = RunDirectory(path)
    with open_run_context(directory, config) as context:
        for number in train_rounds(context):
            if number == until:
                return None
    return summarise(directory)


def first_round(context: RunContext, names: Sequence[str]) -> dict[str, Any]:
    """The manifests of warm start and of round 1's first stages, up to the last one in `names`."""
    from reval_core.pipeline.run_context import Policy

    done: dict[str, Any] = {"warm_start": stages.warm_start(context, 0)}
    policy = Policy.of(done["warm_start"])
    if "rollouts" in names:
        done["rollouts"] = stages.rollouts(context, 1, policy)
    if "verification" in names:
        done["verification"] = stages.verification(context, 1, done["rollouts"])
    if "consistency" in names:
        given = (done["rollouts"], done["verification"], policy, policy)
        done["consistency"] = stages.consistency(context, 1, *given)
    if "sampling" in names:
        done["sampling"] = stages.sampling(context, 1, done["consistency"], done["warm_start"])
    return done
