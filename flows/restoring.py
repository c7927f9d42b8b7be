"""The command `reval restore`: a run from its mirror."""

from __future__ import annotations

from pathlib import Path

from reval.flows.terminal import Bar, notice, print_json, say
from reval_core.errors import InputError
from reval_core.maintenance.restore import check_restore, read_mirror, restore
from reval_core.storage.object_store import StoreError
from reval_core.storage.run_directory import RunDirectory


def show_restore(url: str, path: Path, take_over: bool, dry_run: bool, as_json: bool) -> None:
    """Restore a run into a new directory and print what it contains.

    Args:
        url: The mirror.
        path: The run directory to create.
        take_over: Restore the run although the process that runs it still holds the lease; it then stops.
        dry_run: Only check, and print what would be restored.
        as_json: Print JSON.

    Raises:
        InputError: The mirror holds no run or cannot be reached, its lease is held, or DIR cannot be used.
        CorruptData: The mirror is corrupt.
        RunStopped: Another process took the lease meanwhile.
    """
    directory = RunDirectory(path)
    try:
        run = read_mirror(url)
    except StoreError as error:
        raise InputError(f"{url}: cannot be reached: {error}") from error
    check_restore(run, directory, take_over)
    epoch = run.lease.holder.epoch
    if not dry_run:
        with Bar("restoring files", stderr=True) as bar:
            epoch = restore(run, directory, bar.update).holder.epoch
    found = {
        "url": run.store.url,
        "run": str(directory.path),
        "rounds": run.rounds,
        "files": len(run.index.entries),
        "bytes": run.size,
        "copied_at": run.index.committed_at,
        "last_holder": str(run.lease.holder),
        "epoch": epoch,
        "restored": not dry_run,
    }
    if as_json:
        print_json(found)
        return
    state = "would be restored" if dry_run else "restored"
    say(f"{path}: {state}: {run.rounds} rounds, {len(run.index.entries):,} files, {run.size / 1e6:,.1f} MB")
    say(f"last written by {run.lease.holder}, epoch {run.lease.holder.epoch}")
    if not dry_run:
        _say_next(directory)


def _say_next(directory: RunDirectory) -> None:
    """Print how the run resumes, or why it cannot on this machine."""
    from reval_core.config.loader import load_config
    from reval_core.pipeline.environment import check_machine

    try:
        check_machine(directory, load_config(directory.config))
    except InputError as error:
        notice(error)
    say(f"resume it with: reval resume {directory.path}")
