"""Everything that can be checked about a run or an evaluation before any work begins."""

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
    from reval_core.problems.selection import RunProblems


def prepare(config: Path, overrides: Sequence[str], run_dir: Path | None) -> tuple[Config, RunDirectory]:
    """The checked settings of a run and its directory, `runs/<config name>` by default.

    Raises InputError, one line, for the first problem that would stop the run. Changes nothing on disk.
    """
    check_launch()
    settings, directory = checked_settings(config, overrides, run_dir)
    assert not isinstance(settings.rollouts, ImportedRollouts), "refused above"
    if isinstance(settings.rollouts, Rollouts):
        check_problems(config, settings, settings.rollouts)
    else:
        check_stored(config, settings, settings.rollouts, directory)
    # torch and transformers take seconds to import: whatever can be refused without them has been by now.
    from reval_core.engines.choice import check_installed
    from reval_core.learning.resolution import resolved
    from reval_core.model.loading import check_attention, check_model
    from reval_core.pipeline.environment import check_machine

    check_installed(settings.engine.kind)
    check_machine(directory, settings)
    check_model(settings.model)
    check_attention(settings.model, settings.learner)
    settings = resolved(settings)
    _check_engine(settings)
    _check_memory(config, settings)
    check_prompts(config, settings, directory)
    check_space(directory, run_forecast(settings, directory).disk_bytes, "lower rounds or checkpoints.keep")
    return settings, directory


def checked_settings(config: Path, overrides: Sequence[str], run_dir: Path | None) -> tuple[Config, RunDirectory]:
    """The settings of a run and its directory, checked on their own. Raises InputError for the first fault."""
    settings = load_config(config, overrides)
    if isinstance(settings.rollouts, ImportedRollouts):
        raise InputError(
            f"{config}: rollouts.source: import is what reval import writes into its own run directory; to train "
            "on that, set source: stored and run: that directory"
        )
    directory = RunDirectory(run_dir or Path("runs") / config.stem)
    settings = directory.check(settings)
    if is_first():  # the first of several processes may already hold the lock
        directory.check_free()
    return settings, directory


def prepare_evaluation(
    model: str, protocol: Path | None, overrides: Sequence[str], round: int | None, out: Path | None
) -> tuple[ModelSource, Protocol, EvaluationDirectory]:
    """The model, the protocol and the directory of an evaluation, `evals/<name>` by default.

    Without a protocol, a run is evaluated like its own held-out problems; a protocol is complete in itself.
    Raises InputError, one line, for the first problem that would stop the evaluation. Changes nothing on disk.
    """
    from reval_core.config.protocol import Protocol
    from reval_core.evaluation.directory import EvaluationDirectory
    from reval_core.evaluation.model_source import find_model_source

    source = find_model_source(model, round)
    name = f"{source.name}-round-{source.round}" if source.protocol_defaults else source.name
    directory = EvaluationDirectory(out or Path("evals") / name)
    directory.check_place()
    base = {} if protocol else {"prompt": PROMPTS["deepseek"].model_dump(mode="json"), **source.protocol_defaults}
    if not protocol and "benchmarks" not in base and not any(one.startswith("benchmarks=") for one in overrides):
        raise InputError(f"{model}: no benchmarks given; use --benchmarks or --preset")
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
        raise InputError(f"{directory.path}: contains a run; give another --out")
    if out is None and directory.source() not in (None, source.source):
        raise InputError(f"{directory.path}: contains the evaluation of {directory.source()}; give another --out")
    check_evaluation(directory, source, settings)
    return source, settings, directory


def run_forecast(settings: Config, directory: RunDirectory) -> Forecast:
    """The estimated sizes of a run in its directory."""
    from reval_core.planning.forecast import forecast
    from reval_core.replay_buffer.offline import stored_run

    rollouts = settings.rollouts
    return forecast(settings, stored_run(directory, rollouts) if isinstance(rollouts, StoredRollouts) else None)


def check_space(directory: RunDirectory, needed: int, remedy: str) -> None:
    """Raise InputError if the disk lacks the bytes needed; `remedy` says what to change in the settings."""
    free = directory.free_bytes()
    if needed > free:
        raise InputError(
            f"{directory.path}: the run needs about {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB "
            f"free; make space, or {remedy}"
        )


def _check_engine(settings: Config) -> None:
    """Check what an engine would only refuse when it starts."""
    if isinstance(settings.rollouts, Rollouts):
        from reval_core.engines.limits import check_engine
        from reval_core.model.loading import stop_ids, tokenizer_of

        check_engine(settings.model, settings.engine)
        stop_ids(settings.model, tokenizer_of(settings.model), settings.rollouts.stop)
    if isinstance(settings.engine, VllmServerEngine):
        from reval_core.engines.vllm_server import api_key

        api_key(settings.engine.api_key_variable)


def _check_memory(config: Path, settings: Config) -> None:
    """Check that every stage fits the GPU, if there is one, unless `memory_check: warn` is set."""
    from reval_core.planning.gpu_memory import card, overflows, run_memory

    gpu = card()
    if gpu is not None and settings.memory_check == "refuse":
        for line in overflows(run_memory(settings, gpu), gpu)[:1]:
            raise InputError(f"{config}: {line}; to run it anyway, set memory_check: warn")


def gpu_notes(settings: Config) -> list[str]:
    """Notes on precision and memory for this machine's GPU; empty without one."""
    from reval_core.planning.gpu_memory import card, overflows, run_memory, tight_fit

    gpu = card()
    if gpu is None:
        return []
    stages = run_memory(settings, gpu)
    memory = overflows(stages, gpu) or tight_fit(stages, gpu)
    return [f"learner.precision: {settings.learner.precision} on {gpu.name}", *memory]


def check_problems(config: Path, settings: Config, rollouts: Rollouts) -> None:
    """Check that the problem sets can be read, are large enough and do not overlap. Raises InputError."""
    train = load_train(settings.problems, settings.seed)
    load_held_out(settings.problems, settings.seed)
    _check_enough(config, train, rollouts)
    if settings.problems.contaminated == "refuse":
        check_contamination(train, settings.problems, settings.seed)


def check_prompts(config: Path, settings: Config, directory: RunDirectory) -> RunProblems:
    """Check that every problem can be rendered as a prompt. Returns the problems in use. Raises InputError."""
    from reval_core.model.loading import tokenizer_of
    from reval_core.problems.selection import run_problems

    found = run_problems(settings, directory, tokenizer_of(settings.model))
    if isinstance(settings.rollouts, Rollouts):
        _check_enough(config, found.train, settings.rollouts)
    return found


def _check_enough(config: Path, train: Sequence[Problem], rollouts: Rollouts) -> None:
    if len(train) < rollouts.prompts:
        raise InputError(
            f"{config}: rollouts.prompts: {rollouts.prompts} per round, but problems.train has only "
            f"{len(train)}; lower it"
        )
    if len(train) < rollouts.most_prompts:
        raise InputError(
            f"{config}: rollouts.dynamic_sampling.waves: a round may need {rollouts.most_prompts} problems, but "
            f"problems.train has only {len(train)}; set fewer waves or rollouts.prompts"
        )


def check_stored(config: Path, settings: Config, rollouts: StoredRollouts, directory: RunDirectory) -> None:
    """Check that the stored run can be used for training with these settings. Raises InputError."""
    from reval_core.replay_buffer.offline import check_stored_run, stored_run

    stored = stored_run(directory, rollouts)
    if settings.replay.capacity < stored.rows:
        raise InputError(
            f"{config}: replay.capacity: {settings.replay.capacity} is less than the {stored.rows} trajectories of "
            f"{stored.path}, and the buffer must hold all of them; set replay.capacity: {stored.rows}"
        )
    check_stored_run(directory, stored, settings)
