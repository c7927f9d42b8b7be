"""`reval train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from reval.flows.cli.options import AS_JSON, OVERRIDE
from reval.flows.terminal import lines_beside_json
from reval_core.errors import InputError
from reval_core.launch import is_first


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
@click.option(
    "--gpu-price",
    type=click.FloatRange(min=0),
    metavar="PRICE",
    help="Price of a GPU hour in any currency, for the estimated cost; default: 2.",
)
@click.option(
    "--response-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Expected mean tokens of a response, for the estimated time; default: rollouts.max_tokens.",
)
@AS_JSON
def train(
    config: Path,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    gpus: int | None,
    gpu_gigabytes: float | None,
    gpu_price: float | None,
    response_tokens: int | None,
    as_json: bool,
) -> None:
    """Train as CONFIG describes, in the foreground.

    The same command resumes an interrupted run.
    """
    if any(one is not None for one in (gpus, gpu_gigabytes, gpu_price, response_tokens)):
        if gpus is None or not dry_run:
            raise InputError(
                "--gpus, --gpu-memory, --gpu-price and --response-tokens plan for another machine: "
                "give --dry-run --gpus N"
            )
        from reval.flows.other_machine import Machine, show_plan_for_other_machine

        machine = Machine(gpus, gpu_gigabytes or 80.0, 2.0 if gpu_price is None else gpu_price)
        show_plan_for_other_machine(config, overrides, run_dir, machine, response_tokens, as_json)
        return
    if dry_run:
        from reval.flows.plan import show_plan
        from reval.flows.preparation import prepare

        show_plan(prepare(config, overrides, run_dir), as_json)
        return
    train_and_show(config, overrides, run_dir, as_json)


def train_and_show(config: Path, overrides: Sequence[str], run_dir: Path | None, as_json: bool) -> None:
    """Train in this process and print the summary; only the first process of `accelerate launch` prints."""
    from reval.flows.foreground import leave_undelivered, train_here
    from reval.flows.preparation import prepare
    from reval.flows.show import show_summary

    run = prepare(config, overrides, run_dir)  # before Prefect, which takes seconds to start
    with lines_beside_json(as_json):
        delivered = train_here(run)
    if is_first():
        show_summary(run.directory, as_json)
    if not delivered:
        leave_undelivered()
