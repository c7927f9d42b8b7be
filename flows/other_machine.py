"""Plans a run for another machine: checks the settings as far as possible here, and estimates its sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reval.flows.preparation import check_problems, check_stored, checked_settings
from reval.flows.terminal import print_json, print_pairs, print_table, say, short
from reval_core.config import Config, ImportedRollouts, Model, ProblemSet, Rollouts, VllmServerEngine
from reval_core.errors import InputError
from reval_core.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from reval_core.planning.duration import Duration, Replicas
    from reval_core.planning.forecast import Forecast
    from reval_core.planning.gpu_memory import StageMemory

GIGABYTE = 10**9

PARTS = (
    "weights",
    "copy",
    "moments",
    "gradients",
    "gathered",
    "activations",
    "head",
    "reference",
    "engine",
    "cache",
    "other",
)
"""The uses of GPU memory in display order; reval_core.planning.gpu_memory defines each."""

ARCHITECTURES = "architectures"
"""The directory next to a config with the config.json of models that are not on this machine, by model name."""


@dataclass(frozen=True)
class Machine:
    """A machine with GPUs of one kind."""

    gpus: int
    gpu_gigabytes: float
    """Memory of each GPU, in 10^9 bytes."""
    gpu_price: float
    """Price of a GPU hour."""

    @property
    def gpu_bytes(self) -> int:
        """Memory of each GPU, in bytes."""
        return int(self.gpu_gigabytes * GIGABYTE)


def show_plan_for_other_machine(
    config: Path,
    overrides: Sequence[str],
    run_dir: Path | None,
    machine: Machine,
    response_tokens: int | None,
    as_json: bool,
) -> None:
    """Print the memory, the disk and the time that a run needs per stage on another machine.

    Args:
        config: the path of the config.
        overrides: the values of `--set`.
        run_dir: the run directory, if not the default.
        machine: the other machine.
        response_tokens: the expected mean tokens of a response; by default `rollouts.max_tokens`.
        as_json: print JSON.

    Raises:
        InputError: invalid settings. What cannot be checked on this machine is listed.
    """
    import yaml

    settings, directory = checked_settings(config, overrides, run_dir)
    unchecked = list(_unchecked(config, settings, directory))
    model = known_model(config, settings.model)
    if model is None:
        unchecked.append(
            f"memory and disk: the sizes of {settings.model.path} are unknown; put its config.json into "
            f"{_architecture(config, settings.model)}"
        )
    gpus = machine.gpus
    stages, sizes, time, notes = [], None, None, list(process_uses(settings, gpus))
    response_tokens = _response_tokens(settings, response_tokens)
    if settings.learner.precision == "auto":
        notes.append("learner.precision: auto is bfloat16 on GPUs that support it, as assumed here")
    if model is not None:
        from reval_core.planning.duration import duration
        from reval_core.planning.engine_memory import responses_at_once
        from reval_core.planning.forecast import forecast
        from reval_core.planning.gpu_memory import stage_memory
        from reval_core.planning.model_sizes import FLOAT, Sizes

        sized = settings.model_copy(update={"model": model})
        numbers, gpu_bytes = Sizes.of(model), machine.gpu_bytes
        stages, sizes = stage_memory(sized, numbers, gpus, gpu_bytes), forecast(sized)
        if gpus > 1:
            notes.append(
                f"while they start, {gpus} processes hold the whole float32 model each: "
                f"{gpus * FLOAT * numbers.parameters / GIGABYTE:,.0f} GB of the host's memory"
            )
        if response_tokens is not None:
            time = duration(sized, numbers, gpus, gpu_bytes, response_tokens)
        if time is None:
            notes.append("time is estimated only if vLLM generates and its cache holds a response")
        if (at_once := responses_at_once(sized, numbers, gpu_bytes)) is not None:
            notes.append(f"vLLM's cache holds {at_once[0]} full-length responses at once ({at_once[1]:,} tokens)")
        if isinstance(settings.rollouts, Rollouts) and _too_long(settings.rollouts, numbers.context):
            notes.append(
                f"rollouts.max_tokens: {settings.rollouts.max_tokens} leaves no room for a prompt in the model's "
                f"context of {numbers.context}"
            )
    rows = list(_rows(stages, sizes, machine.gpu_bytes))
    resolved = settings.model_dump(mode="json")
    if as_json:
        print_json(
            {
                "run_dir": str(directory.path),
                "gpus": gpus,
                "gpu_bytes": machine.gpu_bytes,
                "parameters": sizes and sizes.parameters,
                "trajectories": sizes and sizes.trajectories,
                "updates": sizes and sizes.updates,
                "disk_bytes": sizes and sizes.disk_bytes,
                "stages": rows,
                "time": time and _time_json(time, machine, response_tokens),
                "notes": notes,
                "unchecked": unchecked,
                "config": resolved,
            }
        )
        return
    say(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    if sizes is not None:
        _print_sizes(directory, sizes, rows, f"{gpus} × {machine.gpu_gigabytes:g} GB")
    if time is not None:
        _print_time(time, machine, response_tokens)
    _print_list("Notes", notes)
    _print_list("Not checked here", unchecked)


def _response_tokens(settings: Config, given: int | None) -> int | None:
    """The mean tokens of a response for the estimate of time; None if none are generated. Raises InputError."""
    if not isinstance(settings.rollouts, Rollouts):
        return None
    longest = settings.rollouts.max_tokens
    if given is not None and given > longest:
        raise InputError(f"--response-tokens: {given} is more than rollouts.max_tokens ({longest})")
    return longest if given is None else given


def known_model(config: Path, model: Model) -> Model | None:
    """The model, or one of the same sizes from a config.json in `architectures` next to the config, or None."""
    if model.path is None or Path(model.path).is_dir():
        return model
    file = _architecture(config, model)
    return model.model_copy(update={"path": str(file)}) if file.is_file() else None


def _architecture(config: Path, model: Model) -> Path:
    return config.parent / ARCHITECTURES / f"{Path(str(model.path)).name}.json"


def _unchecked(config: Path, settings: Config, directory: RunDirectory) -> Iterator[str]:
    """What is not on this machine and therefore not checked. Raises InputError for what is here and invalid."""
    rollouts = settings.rollouts
    assert not isinstance(rollouts, ImportedRollouts), "refused by checked_settings"
    if isinstance(rollouts, Rollouts):
        yield from _unchecked_problems(config, settings, rollouts)
    elif Path(rollouts.run).is_dir():
        check_stored(config, settings, rollouts, directory)
    else:
        yield f"rollouts.run: {short(Path(rollouts.run))} is not here"
    from reval_core.engines.choice import vllm_installed
    from reval_core.model.loading import check_model

    if settings.engine.kind in ("vllm", "auto") and not vllm_installed():
        yield "engine: vLLM is not installed here; for a GPU: pip install 'reval-rl[vllm]'"
    path = settings.model.path
    if path is None or Path(path).is_dir():
        check_model(settings.model)
    else:
        yield f"model.path: {path} is not a directory here, and the hub was not searched"


def _unchecked_problems(config: Path, settings: Config, rollouts: Rollouts) -> Iterator[str]:
    from reval_core.problems import load_problems

    problems = settings.problems
    sources = [one for one in (problems.train, *problems.held_out, *problems.never_train_on) if one is not None]
    missing = [one for one in sources if not _is_here(one)]
    if not missing:
        check_problems(config, settings, rollouts)
        return
    for source in sources:
        if source not in missing:
            load_problems(source, settings.seed)
    named = [one.set or (one.hub.name if one.hub else str(one.path)) for one in missing]
    yield f"problems: {', '.join(dict.fromkeys(named))} not here, so rows and contamination are not checked"


def _is_here(source: ProblemSet) -> bool:
    from reval_core.problems.registered import find_set

    if source.path is not None:
        return Path(source.path).is_file()
    if source.hub is not None:
        return False
    return source.set is None or find_set(source.set) is not None


def process_uses(settings: Config, processes: int) -> Iterator[str]:
    """What each of several processes, one per GPU, does in a run."""
    engine, shard = settings.engine, settings.learner.shard
    replicas = _replicas(settings, processes)
    if replicas is not None and replicas.gpus > processes:
        yield (
            f"engine: {replicas.count} × tensor_parallel_size {replicas.engine.tensor_parallel_size} is more than "
            f"the {processes} GPUs"
        )
    if processes == 1:
        if shard != "none":
            yield f"learner.shard: {shard} has no effect on one GPU, and the run is refused there"
        return
    held = {
        "none": "each holds all weights, gradients and moments",
        "node": "the weights, gradients and moments are divided among the processes of each host",
        "all": "the weights, gradients and moments are divided among all of them",
    }
    yield (
        f"{processes} processes learn and score together, one per GPU (torchrun --nproc-per-node {processes}); "
        f"learner.shard: {shard}: {held[shard]}; each computes its share of the micro-batches"
    )
    yield (
        "the first process runs the pipeline: it alone has the database, the engine and the verifier, and writes "
        "the run's records; the others wait for its announcements"
    )
    if isinstance(engine, VllmServerEngine):
        yield f"the {len(engine.urls)} servers of engine.urls generate, on GPUs that are not included here"
    elif replicas is not None and replicas.gpus > 1:
        yield (
            f"{replicas.count} vLLM engine{'s' if replicas.count > 1 else ''} on the first {replicas.gpus} of the "
            "same GPUs generate, and share the requests"
        )
    elif isinstance(settings.rollouts, Rollouts):
        yield (
            "generation uses the first GPU, and the others idle meanwhile, unless engine.replicas: auto starts a "
            "vLLM server per GPU or engine.kind: vllm-server uses separate GPUs"
        )


def _replicas(settings: Config, gpus: int) -> Replicas | None:
    """The vLLM engines that a run starts itself; None if it starts none."""
    from reval_core.planning.duration import Replicas

    return None if isinstance(settings.engine, VllmServerEngine) else Replicas.of(settings, gpus)


def _too_long(rollouts: Rollouts, context: int | None) -> bool:
    return context is not None and rollouts.max_tokens >= context


def _rows(stages: Sequence[StageMemory], sizes: Forecast | None, gpu_bytes: float) -> Iterator[dict[str, Any]]:
    disk = dict(sizes.stage_bytes) if sizes is not None else {}
    for one in stages:
        fits = one.fits(gpu_bytes)
        yield {
            "stage": one.stage,
            "memory": one.parts,
            "memory_bytes": one.total,
            "fits": fits,
            "remedy": None if fits else one.remedy,
            "disk_bytes": disk.pop(one.stage, 0),
        }
    for stage, used in disk.items():
        yield {"stage": stage, "memory": {}, "memory_bytes": 0, "fits": True, "remedy": None, "disk_bytes": used}


def _print_sizes(directory: RunDirectory, sizes: Forecast, rows: Sequence[dict[str, Any]], machine: str) -> None:
    summary = {
        "run directory": short(directory.path),
        "parameters": f"{sizes.parameters:,}",
        "trajectories": f"{sizes.trajectories:,}",
        "updates": f"{sizes.updates:,}",
        "disk, maximum": f"{sizes.disk_bytes / GIGABYTE:,.1f} GB including the database",
    }
    print_pairs("What the run would do", summary)
    say(f"\nPeak GB per stage on the first GPU of {machine}, and GB on disk over the whole run\n")
    shown = [row for row in rows if row["memory"]]
    present = {part for row in shown for part in row["memory"]}
    lines = [
        [part, *(_gigabytes(row["memory"].get(part, 0)) for row in shown)] for part in PARTS if part in present
    ]
    lines += [
        ["total", *(_gigabytes(row["memory_bytes"]) for row in shown)],
        ["fits", *("yes" if row["fits"] else "NO" for row in shown)],
        ["disk", *(_gigabytes(row["disk_bytes"]) for row in shown)],
    ]
    print_table(["", *(row["stage"] for row in shown)], lines)
    for row in rows:
        if not row["fits"]:
            say(f"{row['stage']} does not fit: {row['remedy']}")


def _time_json(time: Duration, machine: Machine, response_tokens: int | None) -> dict[str, Any]:
    return {
        "response_tokens": response_tokens,
        "stage_seconds": dict(time.stage_seconds),
        "round_seconds": time.round_seconds,
        "hours": time.hours,
        "gpu_hours": time.gpu_hours,
        "gpu_price": machine.gpu_price,
        "cost": time.gpu_hours * machine.gpu_price,
    }


def _print_time(time: Duration, machine: Machine, response_tokens: int | None) -> None:
    say(
        f"\nEstimated seconds per round on {time.gpus} GPUs of the kind H100, mean over {time.rounds:,} rounds,\n"
        f"if responses have {response_tokens:,} tokens on average\n"
    )
    total = time.round_seconds
    rows = [[stage, f"{one:,.1f}", f"{one / total:.0%}"] for stage, one in time.stage_seconds.items() if one]
    print_table(["", "seconds", "share"], [*rows, ["total", f"{total:,.1f}", ""]])
    say(
        f"The run takes {time.hours:,.0f} h, or {time.gpu_hours:,.0f} GPU hours: "
        f"{time.gpu_hours * machine.gpu_price:,.0f} at {machine.gpu_price:g} per GPU hour"
    )


def _gigabytes(size: int) -> str:
    return f"{size / GIGABYTE:.1f}" if size else ""


def _print_list(title: str, lines: Sequence[str]) -> None:
    if lines:
        say(f"\n{title}")
        for line in lines:
            say(f"  {line}")
