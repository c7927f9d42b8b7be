"""Everything about a run that can be checked before any work begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reval_core.config import Config
from reval_core.errors import InputError
from reval_core.loading import load_config
from reval_core.problems import load_problems
from reval_core.processes import check_launch
from reval_core.run_folder import RunFolder


def prepare(config: Path, overrides: Sequence[str], run_dir: Path | None) -> tuple[Config, RunFolder]:
    """The checked settings of a run and its folder, which is `runs/<config name>` unless given.

    Raises InputError, one line, for the first thing that would stop the run. Changes nothing on disk.
    """
    check_launch()
    settings = load_config(config, overrides)
    folder = RunFolder(run_dir or Path("runs") / config.stem)
    folder.check(settings)
    train = load_problems(settings.problems.train, settings.seed)
    load_problems(settings.problems.held_out, settings.seed)
    if len(train) < settings.rollouts.prompts:
        raise InputError(
            f"{config}: rollouts.prompts: {settings.rollouts.prompts} a round, but problems.train has only "
            f"{len(train)}; ask for fewer"
        )
    # Everything that can be refused without them is refused before torch and transformers take their seconds.
    from reval_core.forecast import forecast
    from reval_core.models import check_model

    check_model(settings.model)
    needed, free = forecast(settings).disk_bytes, folder.free_bytes()
    if needed > free:
        raise InputError(
            f"{folder.path}: the run needs about {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB "
            "free; make space, or lower rounds or checkpoints.keep"
        )
    return settings, folder
