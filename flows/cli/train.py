"""`reval train`."""

from __future__ import annotations

from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, OVERRIDE
from reval_core.errors import InputError


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--run-dir", type=click.Path(path_type=Path), help="Run directory; default: runs/<config name>.")
@OVERRIDE
@click.option("--dry-run", is_flag=True, help="Validate everything and show the plan without changing anything.")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    help="With --dry-run: plan for another machine with this many GPUs. What is missing here is only listed.",
)
@click.option(
    "--gpu-memory",
    "gpu_gigabytes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Memory of each of those GPUs; default: 80.",
)
@AS_JSON
def train(
    config: Path,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    gpus: int | None,
    gpu_gigabytes: float | None,
    as_json: bool,
) -> None:
    """Train as CONFIG describes, in the foreground.

    The same command resumes an interrupted run.
    """
    if gpus is not None or gpu_gigabytes is not None:
        if gpus is None or not dry_run:
            raise InputError("--gpus and --gpu-memory plan for another machine: give --dry-run --gpus N")
        from reval.flows.planning import show_plan_for_other_machine

        show_plan_for_other_machine(config, overrides, run_dir, gpus, gpu_gigabytes or 80.0, as_json)
        return
    if dry_run:
        from reval.flows.plan import show_plan

        show_plan(config, overrides, run_dir, as_json)
        return
    from reval.flows.foreground import train_here

    train_here(config, run_dir, overrides, as_json)
