"""Making small runs in tests, without Prefect."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.rounds import train_rounds
from reval_core import stages
from reval_core.config import Config
from reval_core.run_folder import RunFolder
from reval_core.session import Session, open_session
from reval_core.summary import summarise
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
    folder = RunFolder(path)
    with open_session(folder, config) as session:
        for number in train_rounds(session, stages):
            if number == until:
                return None
    return summarise(folder)


def first_round(session: Session, names: Sequence[str]) -> dict[str, Any]:
    """The manifests of warm start and of round 1's first stages, up to the last one in `names`."""
    from reval_core.session import Policy

    done: dict[str, Any] = {"warm_start": stages.warm_start(session, 0)}
    policy = Policy.of(done["warm_start"])
    if "rollouts" in names:
        done["rollouts"] = stages.rollouts(session, 1, policy)
    if "verification" in names:
        done["verification"] = stages.verification(session, 1, done["rollouts"])
    if "consistency" in names:
        given = (done["rollouts"], done["verification"], policy, policy)
        done["consistency"] = stages.consistency(session, 1, *given)
    if "sampling" in names:
        done["sampling"] = stages.sampling(session, 1, done["consistency"], done["warm_start"])
    return done
