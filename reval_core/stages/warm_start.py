"""Warm start: the initial policy π₀, which is also the first reference."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval_core.atomic_files import check_directory, digest, publish_directory
from reval_core.config import WarmStart
from reval_core.errors import CorruptData
from reval_core.learning.checkpoints import save_first_checkpoint
from reval_core.learning.warm_start import WARM_START_VERSION, fit
from reval_core.model.loading import load_model, make_tiny_model, save_model
from reval_core.model.lora import add_adapters
from reval_core.model.low_precision import LowPrecisionCopy
from reval_core.model.scoring_check import check_scoring
from reval_core.pipeline.run_context import RunContext
from reval_core.problems import Problem, load_problems, problems_digest
from reval_core.stages.stage import Outcome, settings, stage
from reval_core.storage.tables import Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


log = logging.getLogger("reval")


def _inputs(context: RunContext, round: int) -> list[Any]:
    return [settings(context.config.model), context.config.seed, *_fitted(context)]


def _fitted(context: RunContext) -> list[Any]:
    """What the model depends on before adapters are added."""
    model, machine = context.config.model.model_copy(update={"lora": None}), context.machine
    versions = [machine[name] for name in ("threads", "torch", "transformers", "device")]
    # Its own problems are generated arithmetic, and so determined by the settings and WARM_START_VERSION.
    own = model.warm_start is not None and model.warm_start.problems
    made = [None if own else problems_digest(context.train), _seed(context), versions]
    return [settings(model), made if model.path is None or model.warm_start else None, WARM_START_VERSION]


def _checkpoint_exists(context: RunContext, manifest: Manifest) -> bool:
    has_base = context.config.model.lora is None or context.directory.base.exists()
    return has_base and context.directory.checkpoint(0).exists()


@stage(inputs=_inputs, is_complete=_checkpoint_exists)
def warm_start(context: RunContext, round: int) -> Outcome:
    """Create the initial policy and its checkpoint. `info["policy"]` is the digest of the weights."""
    model, reused = _initial_model(context)
    model.to(context.device)
    config = context.config
    if config.model.lora is not None:
        publish_directory(context.directory.base, lambda partial: save_model(model, context.tokenizer, partial))
        add_adapters(model, config.model.lora, config.seed)
    # Checked in the precision of training, and saved with the weights that the optimizer updates.
    copy = LowPrecisionCopy(model, config.seed) if config.learner.precision == "bfloat16" else None
    check_scoring(model, config.learner)
    with copy.replaced_by_masters() if copy else nullcontext():
        identity = save_first_checkpoint(context.directory.checkpoint(0), model, context.tokenizer)
    info = {"policy": identity, "content": identity, "reused": reused, "machine": context.machine}
    return Outcome(info=info)


def shared_directory() -> Path:
    """The cache of fitted models, addressed by content and shared by all runs."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "reval" / "warm-starts"


def _initial_model(context: RunContext) -> tuple[PreTrainedModel, bool]:
    """The model before training, and whether it was reused from another run's warm start."""
    config = context.config
    if config.model.warm_start is None:
        return _raw_model(context), False
    kept = shared_directory() / digest(_fitted(context))[:32]
    if _is_sound(kept):
        return load_model(kept, config.model), True
    model = _raw_model(context)
    problems = _demonstrations(context, config.model.warm_start)
    prompts = {problem.problem: context.prompts[problem.problem][1] for problem in problems}
    fit(
        model.to(context.device),
        context.tokenizer,
        problems,
        prompts,
        config.model.warm_start,
        _seed(context),
        context.tick,
    )
    publish_directory(kept, lambda partial: save_model(model, context.tokenizer, partial))
    return model, False


def _demonstrations(context: RunContext, settings: WarmStart) -> Sequence[Problem]:
    """The problems whose solutions are demonstrated."""
    if not settings.problems:
        return context.train
    return [one for source in settings.problems for one in load_problems(source, _seed(context))]


def _seed(context: RunContext) -> int:
    """The seed of the initial policy."""
    config = context.config
    own = config.model.warm_start.seed if config.model.warm_start else None
    return config.seed if own is None else own


def _is_sound(kept: Path) -> bool:
    """Whether a fitted model exists and is intact. A corrupt one is replaced, since this is only a cache."""
    if not kept.exists():
        return False
    try:
        check_directory(kept)
    except CorruptData as error:
        log.warning("%s; it is fitted again", error)
        return False
    return True


def _raw_model(context: RunContext) -> PreTrainedModel:
    settings = context.config.model
    if settings.tiny is not None:
        return make_tiny_model(settings.tiny, _seed(context))
    assert settings.path is not None
    return load_model(settings.path, settings)
