"""Everything about a run that can be checked before any work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reval_core.config import PROMPTS, Config, ImportedRollouts, Rollouts, StoredRollouts, VllmServerEngine
from reval_core.config.loader import load_config, load_settings
from reval_core.errors import InputError
from reval_core.launch import is_first
from reval_core.learning.distributed import check_launch
from reval_core.problems import check_contamination, load_held_out, load_train
from reval_core.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from reval_core.config.protocol import Protocol
    from reval_core.evaluation.directory import EvaluationDirectory
    from reval_core.evaluation.model_source import ModelSource
    from reval_core.planning.forecast import Forecast
    from reval_core.problems import Problem
    from reval_core.problems.asked import RunProblems


def prepare(config: Path, overrides: Sequence[str], run_dir: Path | None) -> tuple[Config, RunDirectory]:
    """The checked settings of a run and its folder, which is `runs/<config name>` unless given.

    Raises InputError, one line, for the first thing that would stop the run. Changes nothing on disk.
    """
    check_launch()
    settings, directory = checked_settings(config, overrides, run_dir)
    if isinstance(settings.rollouts, Rollouts):
        check_problems(config, settings, settings.rollouts)
    else:
        check_stored(config, settings, settings.rollouts, directory)
    # Everything that can be refused without them is refused before torch and transformers take their seconds.
    from reval_core.engines.choice import check_installed
    from reval_core.learning.precision import with_precision
    from reval_core.model.loading import check_attention, check_model
    from reval_core.pipeline.environment import check_machine
    from reval_core.planning.gpu_memory import card, with_checkpointing

    check_installed(settings.engine.kind)
    check_machine(directory, settings)
    check_model(settings.model)
    check_attention(settings.model, settings.learner)
    settings = with_precision(with_checkpointing(settings, card()))
    _check_engine(settings)
    _check_memory(config, settings)
    check_prompts(config, settings, directory)
    check_space(directory, run_forecast(settings, directory).disk_bytes, "lower rounds or checkpoints.keep")
    return settings, directory


def checked_settings(config: Path, overrides: Sequence[str], run_dir: Path | None) -> tuple[Config, RunDirectory]:
    """The settings of a run and its folder, by themselves. Raises InputError, one line, for the first fault."""
    settings = load_config(config, overrides)
    if isinstance(settings.rollouts, ImportedRollouts):
        raise InputError(
            f"{config}: rollouts.source: import is what reval import writes into its own folder; to train on that, "
            "take source: stored, with run: that folder"
        )
    directory = RunDirectory(run_dir or Path("runs") / config.stem)
    settings = directory.check(settings)
    if is_first():  # the first of several processes may hold it by now
        directory.check_free()
    return settings, directory


def prepare_evaluation(
    model: str, protocol: Path | None, overrides: Sequence[str], round: int | None, out: Path | None
) -> tuple[ModelSource, Protocol, EvaluationDirectory]:
    """What is evaluated, how, and where the evaluation goes: `evals/<name>` unless given.

    Without a protocol a run is asked as it asks its own held-out problems; a protocol says everything itself.
    Raises InputError, one line, for the first thing that would stop the evaluation. Changes nothing on disk.
    """
    from reval_core.config.protocol import Protocol
    from reval_core.evaluation.directory import EvaluationDirectory
    from reval_core.evaluation.model_source import find_model_source

    source = find_model_source(model, round)
    name = f"{source.name}-round-{source.round}" if source.habits else source.name
    directory = EvaluationDirectory(out or Path("evals") / name)
    directory.check_place()
    base = {} if protocol else {"prompt": PROMPTS["deepseek"].model_dump(mode="json"), **source.habits}
    if not protocol and "benchmarks" not in base and not any(one.startswith("benchmarks=") for one in overrides):
        raise InputError(f"{model}: nothing is said of what to ask; give --benchmarks or --preset")
    settings = load_settings(protocol, Protocol, overrides, base)
    if settings.trust_remote_code:
        source = replace(source, model=source.model.model_copy(update={"trust_remote_code": True}))
    from reval_core.engines.choice import check_installed
    from reval_core.engines.limits import check_engine
    from reval_core.evaluation.context import check_evaluation
    from reval_core.model.loading import check_model

    check_installed(settings.engine.kind)
    check_model(source.model)
    check_engine(source.model, settings.engine)
    directory.check_free()
    if directory.config.exists():
        raise InputError(f"{directory.path}: holds a run; give another --out")
    if out is None and directory.source() not in (None, source.source):
        raise InputError(f"{directory.path}: holds the evaluation of {directory.source()}; give another --out")
    check_evaluation(directory, source, settings)
    return source, settings, directory


def run_forecast(settings: Config, directory: RunDirectory) -> Forecast:
    """The sizes of a run in its folder."""
    from reval_core.planning.forecast import forecast
    from reval_core.replay_buffer.offline import stored_run

    rollouts = settings.rollouts
    return forecast(settings, stored_run(directory, rollouts) if isinstance(rollouts, StoredRollouts) else None)


def check_space(directory: RunDirectory, needed: int, remedy: str) -> None:
    """Raise InputError if the disk has not the bytes that are needed."""
    free = directory.free_bytes()
    if needed > free:
        raise InputError(
            f"{directory.path}: the run needs about {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB "
            f"free; make space, or {remedy}"
        )


def _check_engine(settings: Config) -> None:
    """What an engine would refuse only when it starts."""
    if isinstance(settings.rollouts, Rollouts):
        from reval_core.engines.limits import check_engine
        from reval_core.model.loading import stop_ids, tokenizer_of

        check_engine(settings.model, settings.engine)
        stop_ids(settings.model, tokenizer_of(settings.model), settings.rollouts.stop)
    if isinstance(settings.engine, VllmServerEngine):
        from reval_core.engines.vllm_server import api_key

        api_key(settings.engine.api_key_variable)


def _check_memory(config: Path, settings: Config) -> None:
    """See that every stage fits the GPU, if there is one, unless `memory_check: warn` leaves that to the user."""
    from reval_core.planning.gpu_memory import card, overflows, run_memory

    gpu = card()
    if gpu is not None and settings.memory_check == "refuse":
        for line in overflows(run_memory(settings, gpu), gpu)[:1]:
            raise InputError(f"{config}: {line}; to run it all the same, set memory_check: warn")


def gpu_notes(settings: Config) -> list[str]:
    """What a run's user should know of the GPU of this machine; nothing without one."""
    from reval_core.planning.gpu_memory import card, overflows, run_memory, tight_fit

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


def check_prompts(config: Path, settings: Config, directory: RunDirectory) -> RunProblems:
    """See that every problem can be asked, each by its prompt. Returns what is asked. Raises InputError."""
    from reval_core.model.loading import tokenizer_of
    from reval_core.problems.asked import run_problems

    asked = run_problems(settings, directory, tokenizer_of(settings.model))
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


def check_stored(config: Path, settings: Config, rollouts: StoredRollouts, directory: RunDirectory) -> None:
    """See that the stored run can be learned from with these settings. Raises InputError."""
    from reval_core.replay_buffer.offline import check_stored_run, stored_run

    stored = stored_run(directory, rollouts)
    if settings.replay.capacity < stored.rows:
        raise InputError(
            f"{config}: replay.capacity: {settings.replay.capacity} is less than the {stored.rows} trajectories of "
            f"{stored.path}, and the buffer must hold all of them; set replay.capacity: {stored.rows}"
        )
    check_stored_run(directory, stored, settings)
