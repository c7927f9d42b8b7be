"""Everything that can be checked about a run or an evaluation before any work begins.

A command, `reval.train` or `--dry-run` prepares once, and the flow that it starts in this process gets the result.
A flow that a worker starts, in a process of its own, has only its parameters and prepares itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reval_core.config import PROMPTS, Config, ImportedRollouts, Rollouts, StoredRollouts, VllmServerEngine
from reval_core.config.loader import load_config, load_settings
from reval_core.errors import InputError
from reval_core.launch import is_first
from reval_core.learning.distributed import check_launch
from reval_core.problems import RunSets, check_contamination, load_run_sets
from reval_core.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reval_core.config.protocol import Protocol
    from reval_core.evaluation.directory import EvaluationDirectory
    from reval_core.evaluation.model_source import ModelSource
    from reval_core.evaluation.rendered_prompts import EvaluationProblems
    from reval_core.planning.forecast import Forecast
    from reval_core.problems import Problem
    from reval_core.problems.selection import RunProblems
    from reval_core.replay_buffer.offline import StoredRun


@dataclass(frozen=True)
class PreparedRun:
    """A training run that passed every check."""

    file: Path
    """The config as named by the user."""
    overrides: Sequence[str]
    config: Config
    """The resolved settings."""
    directory: RunDirectory
    problems: RunProblems
    forecast: Forecast
    notes: Sequence[str]
    """Notes on precision and memory for this machine's GPU; empty without one."""


@dataclass(frozen=True)
class PreparedEvaluation:
    """An evaluation that passed every check."""

    model: str
    """The model or the run as named by the user."""
    file: Path | None
    """The protocol as named by the user."""
    overrides: Sequence[str]
    round: int | None
    """The round of the run's policy as named by the user."""
    source: ModelSource
    protocol: Protocol
    """The resolved settings."""
    directory: EvaluationDirectory
    problems: EvaluationProblems


def prepare(config: Path, overrides: Sequence[str], run_dir: Path | None) -> PreparedRun:
    """Check a run whose directory is `runs/<config name>` by default.

    Raises InputError, one line, for the first problem that would stop the run. Changes nothing on disk.
    """
    settings, directory = checked_settings(config, overrides, run_dir)
    check_launch(settings.learner.shard)
    assert not isinstance(settings.rollouts, ImportedRollouts), "refused above"
    stored = None
    if isinstance(settings.rollouts, Rollouts):
        sets = check_problems(config, settings, settings.rollouts)
    else:
        stored = check_stored(config, settings, settings.rollouts, directory)
        sets = load_run_sets(settings.problems, settings.seed)
    # torch and transformers take seconds to import: whatever can be refused without them has been by now.
    from reval_core.engines.choice import check_installed
    from reval_core.learning.resolution import resolved
    from reval_core.model.loading import check_attention, check_model
    from reval_core.pipeline.environment import check_machine
    from reval_core.pipeline.mirroring import check_mirror
    from reval_core.planning.forecast import forecast
    from reval_core.problems.selection import run_problems

    check_installed(settings.engine.kind)
    check_machine(directory, settings)
    check_mirror(directory, settings.storage)
    tokenizer = check_model(settings.model)
    check_attention(settings.model, settings.learner)
    settings = resolved(settings)
    _check_engine(settings, tokenizer)
    notes = _gpu_notes(config, settings)
    problems = run_problems(settings, directory, tokenizer, sets)
    if isinstance(settings.rollouts, Rollouts):
        _check_enough(config, problems.train, settings.rollouts)
    sizes = forecast(settings, stored)
    check_space(directory, sizes.disk_bytes, "lower rounds or checkpoints.keep")
    return PreparedRun(config, overrides, settings, directory, problems, sizes, notes)


def checked_settings(config: Path, overrides: Sequence[str], run_dir: Path | None) -> tuple[Config, RunDirectory]:
    """The settings of a run and its directory, checked on their own. Raises InputError for the first fault."""
    settings = load_config(config, overrides)
    if isinstance(settings.rollouts, ImportedRollouts):
        raise InputError(
            f"{config}: rollouts.source: import is what reval import writes into its own run directory; to train "
            "on that, set source: stored and run: that directory"
        )
    directory = RunDirectory(run_path(config, run_dir))
    settings = directory.check(settings)
    if is_first():  # the first of several processes may already hold the lock
        directory.check_free()
    return settings, directory


def run_path(config: Path, run_dir: Path | None) -> Path:
    """The path of a run's directory: as named by the user, or `runs/<config name>`."""
    return run_dir or Path("runs") / config.stem


def prepare_evaluation(
    model: str, protocol: Path | None, overrides: Sequence[str], round: int | None, out: Path | None
) -> PreparedEvaluation:
    """Check an evaluation whose directory is `evals/<name>` by default.

    Without a protocol, a run is evaluated like its own held-out problems; a protocol is complete in itself.
    Raises InputError, one line, for the first problem that would stop the evaluation. Changes nothing on disk.
    """
    from reval_core.config.protocol import Protocol
    from reval_core.evaluation.directory import EvaluationDirectory
    from reval_core.evaluation.model_source import find_model_source

    source = find_model_source(model, round)
    directory = EvaluationDirectory(evaluation_path(source, out))
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
    tokenizer = check_model(source.model)
    check_engine(source.model, settings.engine)
    directory.check_free()
    if directory.config.exists():
        raise InputError(f"{directory.path}: contains a run; give another --out")
    if out is None and directory.source() not in (None, source.source):
        raise InputError(f"{directory.path}: contains the evaluation of {directory.source()}; give another --out")
    problems = check_evaluation(directory, source, settings, tokenizer)
    return PreparedEvaluation(model, protocol, overrides, round, source, settings, directory, problems)


def evaluation_path(source: ModelSource, out: Path | None) -> Path:
    """The path of an evaluation's directory: as named by the user, or `evals/<name of the source>`."""
    name = f"{source.name}-round-{source.round}" if source.protocol_defaults else source.name
    return out or Path("evals") / name


def check_space(directory: RunDirectory, needed: int, remedy: str) -> None:
    """Raise InputError if the disk lacks the bytes needed; `remedy` says what to change in the settings."""
    free = directory.free_bytes()
    if needed > free:
        raise InputError(
            f"{directory.path}: the run needs about {needed / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB "
            f"free; make space, or {remedy}"
        )


def _check_engine(settings: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check what an engine would only refuse when it starts."""
    if isinstance(settings.rollouts, Rollouts):
        from reval_core.engines.limits import check_engine
        from reval_core.model.loading import stop_ids

        check_engine(settings.model, settings.engine)
        stop_ids(settings.model, tokenizer, settings.rollouts.stop)
    if isinstance(settings.engine, VllmServerEngine):
        from reval_core.engines.vllm_server import api_key

        api_key(settings.engine.api_key_variable)


def _gpu_notes(config: Path, settings: Config) -> list[str]:
    """Check that every stage fits the GPU, if there is one, unless `memory_check: warn` is set.

    Returns notes on the GPU. Raises InputError.
    """
    from reval_core.planning.gpu_memory import card, overflows, run_memory, tight_fit

    gpu = card()
    if gpu is None:
        return []
    stages = run_memory(settings, gpu)
    over = overflows(stages, gpu)
    if over and settings.memory_check == "refuse":
        raise InputError(f"{config}: {over[0]}; to run it anyway, set memory_check: warn")
    return [f"learner.precision: {settings.learner.precision} on {gpu.name}", *(over or tight_fit(stages, gpu))]


def check_problems(config: Path, settings: Config, rollouts: Rollouts) -> RunSets:
    """Check that the problem sets can be read, are large enough and do not overlap, and return them.

    Raises InputError.
    """
    sets = load_run_sets(settings.problems, settings.seed)
    _check_enough(config, sets.train, rollouts)
    if settings.problems.contaminated == "refuse":
        check_contamination(sets, settings.problems, settings.seed)
    return sets


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


def check_stored(config: Path, settings: Config, rollouts: StoredRollouts, directory: RunDirectory) -> StoredRun:
    """Check that the stored run can be used for training with these settings, and return its data.

    Raises InputError.
    """
    from reval_core.replay_buffer.offline import check_stored_run, stored_run

    stored = stored_run(directory, rollouts)
    if settings.replay.capacity < stored.rows:
        raise InputError(
            f"{config}: replay.capacity: {settings.replay.capacity} is less than the {stored.rows} trajectories of "
            f"{stored.path}, and the buffer must hold all of them; set replay.capacity: {stored.rows}"
        )
    check_stored_run(directory, stored, settings)
    return stored
