"""Warm start: policy 0, which is also the first reference."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval_core.adapters import add_adapters
from reval_core.checkpoints import save_first_checkpoint
from reval_core.config import WarmStart
from reval_core.errors import Damaged
from reval_core.facts import Manifest
from reval_core.files import check_folder, digest, publish_folder
from reval_core.learning.copy import LowPrecisionCopy
from reval_core.model.scoring_check import check_scoring
from reval_core.models import load_model, make_tiny_model, save_model
from reval_core.problems import Problem, load_problems, problems_digest
from reval_core.session import Session
from reval_core.stages.stage import Outcome, settings, stage
from reval_core.warm_start import WARM_START_VERSION, fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


log = logging.getLogger("reval")


def _inputs(session: Session, round: int) -> list[Any]:
    return [settings(session.config.model), session.config.seed, *_fitted(session)]


def _fitted(session: Session) -> list[Any]:
    """What the model depends on before it is given adapters."""
    model, machine = session.config.model.model_copy(update={"lora": None}), session.machine
    versions = [machine[name] for name in ("threads", "torch", "transformers", "device")]
    # Problems of its own are arithmetic, and so follow from the settings and WARM_START_VERSION.
    own = model.warm_start is not None and model.warm_start.problems
    made = [None if own else problems_digest(session.train), _seed(session), versions]
    return [settings(model), made if model.path is None or model.warm_start else None, WARM_START_VERSION]


def _stands(session: Session, manifest: Manifest) -> bool:
    based = session.config.model.lora is None or session.folder.base.exists()
    return based and session.folder.checkpoint(0).exists()


@stage(inputs=_inputs, stands=_stands)
def warm_start(session: Session, round: int) -> Outcome:
    """Make policy 0 and its checkpoint. `info["policy"]` is the digest of the weights."""
    model, reused = _policy_zero(session)
    model.to(session.device)
    config = session.config
    if config.model.lora is not None:
        publish_folder(session.folder.base, lambda partial: save_model(model, session.tokenizer, partial))
        add_adapters(model, config.model.lora, config.seed)
    # Checked as what learns, and saved as what the optimizer holds.
    copy = LowPrecisionCopy(model, config.seed) if config.learner.precision == "bfloat16" else None
    check_scoring(model, config.learner)
    with copy.replaced_by_masters() if copy else nullcontext():
        identity = save_first_checkpoint(session.folder.checkpoint(0), model, session.tokenizer)
    info = {"policy": identity, "content": identity, "reused": reused, "machine": session.machine}
    return Outcome(info=info)


def shared_folder() -> Path:
    """Where fitted models are kept for other runs, by content."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "reval" / "warm-starts"


def _policy_zero(session: Session) -> tuple[PreTrainedModel, bool]:
    """The model before training, and whether another run's warm start was taken over."""
    config = session.config
    if config.model.warm_start is None:
        return _raw_model(session), False
    kept = shared_folder() / digest(_fitted(session))[:32]
    if _is_sound(kept):
        return load_model(kept, config.model), True
    model = _raw_model(session)
    problems = _shown(session, config.model.warm_start)
    prompts = {problem.problem: session.prompts[problem.problem][1] for problem in problems}
    fit(
        model.to(session.device),
        session.tokenizer,
        problems,
        prompts,
        config.model.warm_start,
        _seed(session),
        session.tick,
    )
    publish_folder(kept, lambda partial: save_model(model, session.tokenizer, partial))
    return model, False


def _shown(session: Session, settings: WarmStart) -> Sequence[Problem]:
    """What is demonstrated."""
    if not settings.problems:
        return session.train
    return [one for source in settings.problems for one in load_problems(source, _seed(session))]


def _seed(session: Session) -> int:
    """The seed of policy 0."""
    config = session.config
    own = config.model.warm_start.seed if config.model.warm_start else None
    return config.seed if own is None else own


def _is_sound(kept: Path) -> bool:
    """Whether a fitted model is there, and is what was written. It is only a cache: a damaged one is replaced."""
    if not kept.exists():
        return False
    try:
        check_folder(kept)
    except Damaged as error:
        log.warning("%s; it is fitted again", error)
        return False
    return True


def _raw_model(session: Session) -> PreTrainedModel:
    settings = session.config.model
    if settings.tiny is not None:
        return make_tiny_model(settings.tiny, _seed(session))
    assert settings.path is not None
    return load_model(settings.path, settings)
