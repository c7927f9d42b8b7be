"""Running the flow in the foreground: the same flow as the deployment's, in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flows.preparation import prepare
from flows.server import LOCAL_API, answers
from reval_core import processes


def train_here(config: Path, run_dir: Path | None, overrides: Sequence[str], as_json: bool) -> None:
    """Train in this process, or follow the first one that `accelerate launch` started, and print the summary."""
    settings, folder = prepare(config, overrides, run_dir)  # before Prefect takes its seconds to start
    if not processes.is_first():
        processes.follow(folder, settings)
        return
    from flows.show import show_summary

    _run_flow(config, overrides, run_dir)
    show_summary(folder, as_json)


def _run_flow(config: Path, overrides: Sequence[str], run_dir: Path | None) -> None:
    """Run `reval-train` here. A local server that answers is used; otherwise Prefect starts one for the run."""
    if "PREFECT_API_URL" not in os.environ and answers(LOCAL_API):
        os.environ["PREFECT_API_URL"] = LOCAL_API
    # The server that Prefect starts for a run needs more than its default 20 s on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    # Prefect writes a line for every task; the terminal shows one a round. Its page has the rest.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from flows.train import train

    train(str(config), list(overrides), str(run_dir) if run_dir else None)
