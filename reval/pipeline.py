"""Training and evaluating from Python: the same flows as `reval train` and `reval eval`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from reval.flows.foreground import UNDELIVERED, evaluate_here, train_here
from reval.flows.named_inputs import protocol_file, protocol_overrides
from reval.flows.preparation import prepare, prepare_evaluation
from reval.runs import Run
from reval_core.atomic_files import read_json

Overrides = Mapping[str, Any] | Sequence[str]
"""Settings laid over a config: `{"learner.lr": 1e-4}`, or `["learner.lr=1e-4"]` as for `--set`."""


def train(
    config: str | PathLike[str],
    overrides: Overrides = (),
    run_dir: str | PathLike[str] | None = None,
) -> Run:
    """Train in this process, as `reval train` does.

    A run that was interrupted resumes from its last completed stage. A finished run returns at once. Progress is
    printed, and notes on precision and GPU memory. Under `accelerate launch` or torchrun, all processes call this
    function; the processes after the first return when the run ends.

    Args:
        config: The path of a YAML config (docs/config.md).
        overrides: Settings that replace those of the config.
        run_dir: The run directory; `runs/<name of the config>` by default.

    Returns:
        The run.

    Raises:
        reval_core.errors.InputError: The config or something that it names cannot be used. Nothing was written.
        reval_core.errors.RunStopped: The run stopped early; the message says why.
    """
    run = prepare(Path(config), _override_list(overrides), None if run_dir is None else Path(run_dir))
    _warn_unless(train_here(run))
    return Run(run.directory.path)


def evaluate(
    model: str | PathLike[str],
    *,
    benchmarks: str | None = None,
    samples: int | None = None,
    limit: int | None = None,
    preset: str | None = None,
    round: int | None = None,
    out: str | PathLike[str] | None = None,
    overrides: Overrides = (),
) -> dict[str, Any]:
    """Evaluate a model, or the policy of a run, on problem sets, as `reval eval` does.

    An evaluation that was interrupted resumes; no response is generated twice.

    Args:
        model: A model directory or a run directory.
        benchmarks: Registered sets and files with optional limits, such as `"gsm8k:50,problems.jsonl"`; by default
            those of the run or of the preset.
        samples: Responses per problem; 16 if nothing else is set.
        limit: Maximum number of problems per set, chosen by the seed.
        preset: A protocol: `"paper"`, `"arithmetic"`, or the path of a YAML file.
        round: For a run: the policy after this round; the last by default.
        out: The evaluation directory; `evals/<name>` by default. `reval.open(out)` reads its responses.
        overrides: Settings that replace those of the protocol.

    Returns:
        The content of `results.json` (docs/evaluation.md), with the evaluation directory as `out`.

    Raises:
        reval_core.errors.InputError: An argument cannot be used. Nothing was written.
        reval_core.errors.RunStopped: The evaluation stopped early.
    """
    given = [*protocol_overrides(benchmarks, samples, limit), *_override_list(overrides)]
    protocol = None if preset is None else protocol_file(preset)
    evaluation = prepare_evaluation(str(model), protocol, given, round, None if out is None else Path(out))
    _warn_unless(evaluate_here(evaluation))
    return {**read_json(evaluation.directory.results), "out": str(evaluation.directory.path)}


def _override_list(overrides: Overrides) -> list[str]:
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
    return list(overrides)


def _warn_unless(delivered: bool) -> None:
    if not delivered:
        warnings.warn(UNDELIVERED, RuntimeWarning, stacklevel=3)
