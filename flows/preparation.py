"""Everything about a run that can be checked before any work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reval_core.config import PROMPTS, Config, ImportedRollouts, Rollouts, StoredRollouts, VllmServerEngine
from reval_core.errors import InputError
from reval_core.loading import load_config, load_settings
from reval_core.problems import check_contamination, load_held_out, load_train
from reval_core.processes import check_launch, is_first
from reval_core.run_folder import RunFolder

if TYPE_CHECKING:
    from reval_core.config.protocol import Protocol
    from reval_core.evaluation.folder import EvaluationFolder
    from reval_core.evaluation.subject import Subject
    from reval_core.forecast import Forecast
    from reval_core.problems import Problem
    from reval_core.problems.asked import RunProblems


def prepare(config: Path, overrides: Sequence[str], run_dir: Path | None) -> tuple[Config, RunFolder]:
    """The checked settings of a run and its folder, which is `runs/<config name>` unless given.

    Raises InputError, one line, for the first thing that would stop the run. Changes nothing on disk.
    """
    check_launch()
    settings, folder = checked_settings(config, overrides, run_dir)
    if isinstance(settings.rollouts, Rollouts):
        check_problems(config, settings, settings.rollouts)
    else:
        check_stored(config, settings, settings.rollouts, folder)
    # Everything that can be refused without them is refused before torch and transformers take their seconds.
    from reval_core.engines.choice import check_installed
    from reval_core.gpu_memory import card, with_checkpointing
    from reval_core.learning.precision import with_precision
    from reval_core.machine import check_machine
    from reval_core.models import check_attention, check_model

    check_installed(settings.engine.kind)
    check_machine(folder, settings)
    check_model(settings.model)
    check_attention(settings.model, settings.learner)
    settings = with_precision(with_checkpointing(settings, card()))
    _check_engine(settings)
    _check_memory(config, settings)
    check_prompts(config, settings, folder)
    check_space(folder, run_forecast(settings, folder).disk_bytes, "lower rounds or checkpoints.keep")
    return settings, folder


def checked_settings(config: Path, overrides: Sequence[str], run_dir: Path | None) -> tuple[Config, RunFolder]:
    """The settings of a run and its folder, by themselves. Raises InputError, one line, for the first fault."""
    settings = load_config(config, overrides)
    if isinstance(settings.rollouts, ImportedRollouts):
        raise InputError(
            f"{config}: rollouts.source: import is what reval import writes into its own folder; to train on that, "
            "take source: stored, with run: that folder"
        )
    folder = RunFolder(run_dir or Path("runs") / config.stem)
    settings = folder.check(settings)
    if is_first():  # the first of several processes may hold it by now
        folder.check_free()
    return settings, folder


def prepare_evaluation(
    model: str, protocol: Path | None, overrides: Sequence[str], round: int | None, out: Path | None
) -> tuple[Subject, Protocol, EvaluationFolder]:
    """What is evaluated, how, and where the evaluation goes: `evals/<name>` unless given.

    Without a protocol a run is asked as it asks its own held-out problems; a protocol says everything itself.
    Raises InputError, one line, for the first thing that would stop the evaluation. Changes nothing on disk.
    """
    from reval_core.config.protocol import Protocol
    from reval_core.evaluation.folder import EvaluationFolder
    from reval_core.evaluation.subject import find_subject

    subject = find_subject(model, round)
    name = f"{subject.name}-round-{subject.round}" if subject.habits else subject.name
    folder = EvaluationFolder(out or Path("evals") / name)
    folder.check_place()
    base = {} if protocol else {"prompt": PROMPTS["deepseek"].model_dump(mode="json"), **subject.habits}
    if not protocol and "benchmarks" not in base and not any(one.startswith("benchmarks=") for one in overrides):
        raise InputError(f"{model}: nothing is said of what to ask; give --benchmarks or --preset")
    settings = load_settings(protocol, Protocol, overrides, base)
    if settings.trust_remote_code:
        subject = replace(subject, model=subject.model.model_copy(update={"trust_remote_code": True}))
    from reval_core.engines.choice import check_installed
    from reval_core.engines.limits import check_engine
    from reval_core.evaluation.examination import check_examination
    from reval_core.models import check_model

    check_installed(settings.engine.kind)
    check_model(subject.model)
    check_engine(subject.model, settings.engine)
    folder.check_free()
    if folder.config.exists():
        raise InputError(f"{folder.path}: holds a run; give another --out")
    if out is None and folder.source() not in (None, subject.source):
        raise InputError(f"{folder.path}: holds the evaluation of {folder.source()}; give another --out")
    check_examination(folder, subject, settings)
    return subject, settings, folder


def run_forecast(settings: Config, folder: RunFolder) -> Forecast:
    """The sizes of a run in its folder."""
    from reval_core.forecast import forecast
    from reval_core.stored import stored_run

    rollouts = settings.rollouts
    return forecast(settings, stored_run(folder, rollouts) if isinstance(rollouts, StoredRollouts) else None)


def check_space(folder: RunFolder, needed: int, remedy: str) -> None:
    """Raise InputError if the disk has not the bytes that are needed."""
    free = folder.free_bytes()
    if needed > free:
        raise InputError(
            f"{folder.path}: the run needs about {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB "
            f"free; make space, or {remedy}"
        )


def _check_engine(settings: Config) -> None:
    """What an engine would refuse only when it starts."""
    if isinstance(settings.rollouts, Rollouts):
        from reval_core.engines.limits import check_engine
        from reval_core.models import stop_ids, tokenizer_of

        check_engine(settings.model, settings.engine)
        stop_ids(settings.model, tokenizer_of(settings.model), settings.rollouts.stop)
    if isinstance(settings.engine, VllmServerEngine):
        from reval_core.engines.vllm_server import api_key

        api_key(settings.engine.api_key_variable)


def _check_memory(config: Path, settings: Config) -> None:
    """See that every stage fits the GPU, if there is one, unless `memory_check: warn` leaves that to the user."""
    from reval_core.gpu_memory import card, overflows, run_memory

    gpu = card()
    if gpu is not None and settings.memory_check == "refuse":
        for line in overflows(run_memory(settings, gpu), gpu)[:1]:
            raise InputError(f"{config}: {line}; to run it all the same, set memory_check: warn")


def gpu_notes(settings: Config) -> list[str]:
    """What a run's user should know of the GPU of this machine; nothing without one."""
    from reval_core.gpu_memory import card, overflows, run_memory, tight_fit

    gpu = card()
    if gpu is None:
        return []
    stages = run_memory(settings, gpu)
    memory = overflows(stages, gpu) or tight_fit(stages, gpu)
    return [f"learner.precision: {settings.learner.precision} on {gpu.name}", *memory]


def check_problems(config: Path, settings: Config, rollouts: Rollouts) -> None:
    """See that the problem sets can be read, and that they are enough and apart. Raises InputError."""
    train = load_train(settings.problems, settings.seed)
    load_held_out(settings.problems, settings.seed)
    _check_enough(config, train, rollouts)
    if settings.problems.contaminated == "refuse":
        check_contamination(train, settings.problems, settings.seed)


def check_prompts(config: Path, settings: Config, folder: RunFolder) -> RunProblems:
    """See that every problem can be asked, each by its prompt. Returns what is asked. Raises InputError."""
    from reval_core.models import tokenizer_of
    from reval_core.problems.asked import run_problems

    asked = run_problems(settings, folder, tokenizer_of(settings.model))
    if isinstance(settings.rollouts, Rollouts):
        _check_enough(config, asked.train, settings.rollouts)
    return asked


def _check_enough(config: Path, train: Sequence[Problem], rollouts: Rollouts) -> None:
    if len(train) < rollouts.prompts:
        raise InputError(
            f"{config}: rollouts.prompts: {rollouts.prompts} a round, but problems.train has only "
            f"{len(train)}; ask for fewer"
        )
    if len(train) < rollouts.most_prompts:
        raise InputError(
            f"{config}: rollouts.dynamic_sampling.waves: a round may ask {rollouts.most_prompts} problems, but "
            f"problems.train has only {len(train)}; set fewer waves or rollouts.prompts"
        )


def check_stored(config: Path, settings: Config, rollouts: StoredRollouts, folder: RunFolder) -> None:
    """See that the stored run can be learned from with these settings. Raises InputError."""
    from reval_core.stored import check_stored_run, stored_run

    stored = stored_run(folder, rollouts)
    if settings.replay.capacity < stored.rows:
        raise InputError(
            f"{config}: replay.capacity: {settings.replay.capacity} is less than the {stored.rows} trajectories of "
            f"{stored.path}, and the buffer must hold all of them; set replay.capacity: {stored.rows}"
        )
    check_stored_run(folder, stored, settings)
