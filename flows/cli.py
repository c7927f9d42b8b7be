"""The command `reval`. Everything heavy is imported by the command that needs it: `reval --help` is instant."""

from __future__ import annotations

import signal

_at_import = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends it without a traceback

import io
import sys
from pathlib import Path
from typing import Any

import click

from flows.options import AS_JSON
from flows.problem_commands import problems, verify
from flows.querying import QueryError
from flows.streams import exit_code, guard
from flows.terminal import say
from reval_core.errors import InputError, RevalError
from reval_core.output.control_characters import visible

signal.signal(signal.SIGINT, _at_import)

_OVERRIDE = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, such as learner.lr=1e-4."
)
_RUN_DIR = click.option(
    "--run-dir", type=click.Path(path_type=Path), help="The run's folder; runs/<config name> if not given."
)
_RUN = click.argument("run", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train language models with ReVal: off-policy, value-based reinforcement learning.

    A run is a folder. Started again, it goes on where it was.
    """


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@_RUN_DIR
@_OVERRIDE
@click.option("--dry-run", is_flag=True, help="Check everything and show what the run would do; change nothing.")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    help="With --dry-run: plan for another machine, with so many GPUs. What is not here is named, not refused.",
)
@click.option(
    "--gpu-memory",
    "gpu_gigabytes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="The memory of each of those GPUs; 80 if not given.",
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
    """Train as CONFIG says, in the foreground.

    Given again, it goes on with a run that was interrupted.
    """
    if gpus is not None or gpu_gigabytes is not None:
        if gpus is None or not dry_run:
            raise InputError("--gpus and --gpu-memory plan for another machine: give --dry-run --gpus N")
        from flows.planning import show_plan_elsewhere

        show_plan_elsewhere(config, overrides, run_dir, gpus, gpu_gigabytes or 80.0, as_json)
        return
    if dry_run:
        from flows.plan import show_plan

        show_plan(config, overrides, run_dir, as_json)
        return
    from flows.foreground import train_here

    train_here(config, run_dir, overrides, as_json)


@cli.command()
@_RUN
@AS_JSON
def resume(run: Path, as_json: bool) -> None:
    """Go on with RUN where it was interrupted."""
    from flows.foreground import train_here
    from reval_core.storage.run_directory import existing_run

    train_here(existing_run(run).config, run, (), as_json)


@cli.command("eval")
@click.argument("model")
@click.option(
    "--benchmarks", metavar="SETS", help="Such as gsm8k:50,math500:20, or files; a run's own if not given."
)
@click.option("--samples", type=click.IntRange(min=1), help="Responses a problem; 16 if nothing says otherwise.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="At most so many problems of each set, chosen by the seed."
)
@click.option("--preset", help="A protocol: paper, arithmetic, or a YAML file of your own.")
@click.option("--data", type=click.Path(path_type=Path), help="A folder that holds registered sets.")
@click.option("--round", type=click.IntRange(min=0), help="Of a run: the policy after so many rounds; the last.")
@click.option("--out", type=click.Path(path_type=Path), help="The evaluation's folder; evals/<name> if not given.")
@click.option("--dry-run", is_flag=True, help="Check everything and show what would be asked; change nothing.")
@_OVERRIDE
@AS_JSON
def evaluate(
    model: str,
    benchmarks: str | None,
    samples: int | None,
    limit: int | None,
    preset: str | None,
    data: Path | None,
    round: int | None,
    out: Path | None,
    dry_run: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Evaluate MODEL, a model's folder or a run, on sets of problems.

    Given again, it goes on where it was, and asks nothing twice.
    """
    from flows.evaluating import benchmarks_override, evaluate_here, protocol_file, show_evaluation_plan, use_data

    if data is not None:
        use_data(data)
    given = [benchmarks_override(benchmarks)] if benchmarks else []
    given += [f"{name}={value}" for name, value in (("samples", samples), ("limit", limit)) if value is not None]
    protocol = protocol_file(preset) if preset else None
    act = show_evaluation_plan if dry_run else evaluate_here
    act(model, protocol, [*given, *overrides], round, out, as_json)


@cli.command()
@click.argument("figures", nargs=-1, metavar="[FIGURE]...")
@click.option("--all", "everything", is_flag=True, help="All figures; searches by their names only.")
@click.option("--seeds", type=click.IntRange(min=1), help="Runs of each kind; 3 if the figure says nothing else.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reproduction"), help="Where runs and the page go."
)
@click.option("--workers", type=click.IntRange(min=1), help="Runs at a time; as many as there are cores.")
@AS_JSON
def reproduce(
    figures: tuple[str, ...], everything: bool, seeds: int | None, out: Path, workers: int | None, as_json: bool
) -> None:
    """Reproduce FIGUREs of the paper in small, or list them.

    Given again, it goes on where it was, and does no run twice.
    """
    from flows.reproducing import all_figures, reproduce_here, show_figures

    if figures and everything:
        raise InputError("reval reproduce: give figures or --all, not both")
    wanted = all_figures() if everything else figures
    if wanted:
        reproduce_here(wanted, seeds, out, workers, as_json)
    else:
        show_figures(out, as_json=as_json)


@cli.command()
@_RUN
@AS_JSON
def check(run: Path, as_json: bool) -> None:
    """Verify RUN's files, rows, database and replay."""
    from flows.upkeep import show_check

    show_check(run, as_json)


@cli.command()
@_RUN
@AS_JSON
def rebuild(run: Path, as_json: bool) -> None:
    """Make RUN's database again from its facts."""
    from flows.upkeep import show_rebuild

    show_rebuild(run, as_json)


@cli.command()
@_RUN
@click.option("--round", type=click.IntRange(min=0), help="After so many rounds; the last if not given.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder that transformers loads.")
@click.option("--masters", is_flag=True, help="Of a bfloat16 run: the float32 weights that the optimizer holds.")
@AS_JSON
def policy(run: Path, round: int | None, out: Path, masters: bool, as_json: bool) -> None:
    """Make the policy of any round of RUN again.

    It comes from the newest checkpoint before, and the recorded draws after that.
    """
    from flows.upkeep import show_policy

    show_policy(run, round, out, as_json, masters)


@cli.command()
@_RUN
@click.option("--yes", is_flag=True, help="Do it; without, only say what would go.")
@AS_JSON
def prune(run: Path, yes: bool, as_json: bool) -> None:
    """Drop old tokens of a finished RUN, if asked.

    Rounds outside its buffer lose what there is one of for each token, and their small files are merged.
    """
    from flows.upkeep import show_prune

    show_prune(run, yes, as_json)


@cli.command()
def serve() -> None:
    """Run a Prefect server and a worker.

    Then `prefect deployment run reval-train/default` trains.
    """
    import time

    from flows.server import server, worker

    with server() as url, worker():
        say(f"Prefect's page: {url.removesuffix('/api')}")
        say("Start a run, in another terminal:")
        say(f"  export PREFECT_API_URL={url}")
        say("  prefect deployment run reval-train/default")
        say("Stop with Ctrl-C.")
        while True:
            time.sleep(3600)


@cli.command()
def demo() -> None:
    """Train configs/demo.yaml through Prefect."""
    from flows.demo import run_demo

    run_demo()


@cli.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    help="The config that will learn from the responses.",
)
@click.option(
    "--run-dir", type=click.Path(path_type=Path), help="The folder that is made; runs/<file's name> if not given."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=NAME",
    help="What the file calls problem, response, gold or reward, such as response=completion.",
)
@_OVERRIDE
@AS_JSON
def import_(
    file: Path,
    config: Path,
    run_dir: Path | None,
    columns: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Store the responses in FILE to learn from.

    FILE is JSONL, JSON, CSV, Parquet or Arrow. Runs with rollouts.source: stored then learn from them.
    """
    from flows.importing import import_file

    import_file(file, config, overrides, run_dir, columns, as_json)


@cli.command()
@_RUN
@click.argument("query")
@AS_JSON
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV for programs.")
def sql(run: Path, query: str, as_json: bool, as_csv: bool) -> None:
    """Ask SQL about RUN, also while it trains.

    docs/schema.md describes the tables.
    """
    from flows.querying import show_query

    show_query(run, query, "json" if as_json else "csv" if as_csv else "table")


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path), default="runs")
@AS_JSON
def runs(directory: Path, as_json: bool) -> None:
    """List the runs below FOLDER (runs)."""
    from flows.show import show_runs

    show_runs(directory, as_json)


@cli.command()
@_RUN
def report(run: Path) -> None:
    """Write RUN's report, a page of its own.

    It shows curves, the hardest prompts and example trajectories.
    """
    from reval_core.report import write_report
    from reval_core.storage.run_directory import existing_run

    say(write_report(existing_run(run)))


@cli.command()
@_RUN
@click.option("--mode", type=click.Choice(["strict", "lenient"]), help="Other rules; the run's if not given.")
@click.option("--methods", metavar="METHOD,…", help="Where answers are looked for, such as boxed,phrase.")
@click.option("--function", metavar="MODULE:NAME", help="A function that judges in place of the rules.")
@click.option(
    "--round", "rounds", type=click.IntRange(min=0), multiple=True, help="Only this round; all if not given."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A new Parquet file; RUN-regraded.parquet beside RUN if not given.",
)
@AS_JSON
def regrade(
    run: Path,
    mode: str | None,
    methods: str | None,
    function: str | None,
    rounds: tuple[int, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge RUN's stored responses again, under other rules.

    Shows what changes, and the rewards that each round would have had. RUN, which may be training, an import or an
    evaluation, is not changed.
    """
    from flows.regrading import regrade_run

    regrade_run(run, mode, methods, function, rounds, out, as_json)


@cli.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, metavar="RUN RUN …")
@click.option("--round", type=click.IntRange(min=0), help="After so many rounds; the last evaluated if not given.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="compare.html", help="The page; compare.html if not given."
)
@AS_JSON
def compare(runs: tuple[Path, ...], round: int | None, out: Path, as_json: bool) -> None:
    """Compare runs or evaluations with the first.

    On the problems that both were asked: paired intervals, what flipped, and a page with curves.
    """
    from flows.comparing import show_comparison

    show_comparison(runs, round, out, as_json)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@AS_JSON
def doctor(config: Path | None, as_json: bool) -> None:
    """Say what is installed and can run here.

    With CONFIG, also what that would do.
    """
    from flows.show import show_doctor

    show_doctor(config, as_json)


cli.add_command(problems)
cli.add_command(verify)


def main() -> None:
    """Run the command line: 2 is bad input, 1 a run that stopped, 130 an interruption, 143 a SIGTERM."""
    signal.signal(signal.SIGTERM, _terminate)
    guard()
    try:
        code = exit_code(_run())
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends this process where it stands
        code = 130
    if code:
        sys.exit(code)


def _run() -> int:
    try:
        cli.main(standalone_mode=False)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(file=shown)
        say(shown.getvalue().rstrip(), err=True)
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except QueryError as error:
        say(f"reval: {error}", err=True)
        return 2
    except InputError as error:
        say(visible(f"reval: {error}"), err=True)
        return 2
    except RevalError as error:
        say(f"reval: {error}", err=True)
        return 1
    return 0


def _terminate(number: int, frame: Any) -> None:
    """Leave by an exception, so that locks, workers and servers are let go on the way out; once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


if __name__ == "__main__":
    main()
