"""The command `reval`: one module per command, imported on use. The work itself is imported by the commands."""

from __future__ import annotations

import signal

_at_import = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends it without a traceback

import io
import sys
from importlib import import_module
from typing import Any

import click

from reval import __version__
from reval.flows.querying import QueryError
from reval.flows.streams import exit_code, guard
from reval.flows.terminal import notice, say
from reval_core.errors import InputError, RevalError
from reval_core.output.control_characters import visible

signal.signal(signal.SIGINT, _at_import)

COMMANDS = {
    "check": "check:check",
    "compare": "compare:compare",
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
    "eval": "evaluate:evaluate",
    "export-model": "export_model:export_model",
    "grade": "grade:grade",
    "import": "import_responses:import_responses",
    "init": "init:init",
    "problems": "problems:problems",
    "prune": "prune:prune",
    "regrade": "regrade:regrade",
    "reindex": "reindex:reindex",
    "report": "report:report",
    "reproduce": "reproduce:reproduce",
    "restore": "restore:restore",
    "resume": "resume:resume",
    "runs": "runs:runs",
    "serve": "serve:serve",
    "sql": "sql:sql",
    "train": "train:train",
}
"""The module and the function of each command."""

RENAMED = {"policy": "export-model", "rebuild": "reindex", "verify": "grade"}
"""Former names of commands. They still work, with a notice, and are not listed."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The current names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this current or former name, or None."""
        place = COMMANDS.get(RENAMED.get(cmd_name, cmd_name))
        if place is None:
            return None
        module, _, function = place.partition(":")
        command: click.Command = getattr(import_module(f"reval.flows.cli.{module}"), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name; a former name gets a notice on standard error."""
        name, command, rest = super().resolve_command(ctx, args)
        if args[0] in RENAMED:
            name = RENAMED[args[0]]
            notice(f"the command {args[0]} is now called {name}; please use the new name")
        return name, command, rest


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="reval", message="%(prog)s %(version)s")
def cli() -> None:
    """Train language models with ReVal: off-policy, value-based reinforcement learning.

    A run is a directory. An interrupted run resumes from the last completed stage.
    """


def main() -> None:
    """Run the command line.

    Exits with 0 on success, 2 for invalid input, 1 for a run that stopped, 130 after Ctrl-C and 143 after SIGTERM.
    """
    signal.signal(signal.SIGTERM, _terminate)
    guard()
    try:
        code = exit_code(_run())
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process immediately
        code = 130
    if code:
        sys.exit(code)


def _run() -> int:
    try:
        cli.main(prog_name="reval", standalone_mode=False)
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
        notice(error)
        return 2
    except InputError as error:
        notice(visible(str(error)))
        return 2
    except RevalError as error:
        notice(error)
        return 1
    return 0


def _terminate(number: int, frame: Any) -> None:
    """Exit by an exception, so that locks, workers and servers are released on the way out; only once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)
