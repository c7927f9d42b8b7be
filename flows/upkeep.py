"""Maintenance of a run: the commands check, reindex, export-model and prune."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from reval.flows.terminal import Bar, print_json, print_rows, say
from reval_core.config import Config
from reval_core.config.loader import load_config
from reval_core.config.places import check_local, check_writable
from reval_core.errors import InputError, RunStopped
from reval_core.storage.run_directory import RunDirectory, existing_run


def show_check(run: Path, as_json: bool) -> None:
    """Check a run and print the results. Raises RunStopped if anything is wrong."""
    from reval_core.maintenance.check import check_run

    directory, config = _run(run)
    results = []
    with directory.lock(), Bar("reconstructing rounds", stderr=True) as bar:
        for result in check_run(directory, config, bar.update):
            results.append(result)
            if not as_json:
                verdict = "WRONG" if result.problems else "ok"
                say(f"{result.part:<9} {verdict:<6} {result.seen}")
                for problem in result.problems:
                    say(f"  {problem}")
    if as_json:
        print_json([vars(result) for result in results])
    wrong = sum(len(result.problems) for result in results)
    if wrong:
        raise RunStopped(
            f"{run}: {wrong} problem{'s' * (wrong > 1)} found; the next start fixes what can be regenerated"
        )


def show_reindex(run: Path, as_json: bool) -> None:
    """Rebuild a run's database and print its tables."""
    from reval_core.replay_buffer.index import rebuild_store

    directory, config = _run(run)
    with directory.lock():
        rows = rebuild_store(directory, config.replay.capacity, config.replay.max_age)
    if as_json:
        print_json(rows)
    else:
        print_rows(["table", "rows"], list(rows.items()))


def show_exported_model(run: Path, round: int | None, out: Path, as_json: bool, masters: bool = False) -> None:
    """Write the policy of a round to a new directory and print its digest.

    Args:
        run: The run directory.
        round: The round after which the policy is taken; None for the last.
        out: A directory that does not exist yet.
        as_json: Print JSON.
        masters: Write the optimizer's float32 weights, where the policy is a bfloat16 copy of them.

    Raises:
        InputError: `out` exists or cannot be written, or the run has no policy of that round.
    """
    from reval_core.learning.checkpoints import export_policy
    from reval_core.learning.draws import DrawReader
    from reval_core.model.loading import tokenizer_of
    from reval_core.pipeline.environment import fix_machine
    from reval_core.pipeline.reconstruction import newest_policy, reconstruct, recorded_policy

    directory, config = _run(run)
    check_local(out, "--out")
    check_writable(out.parent, f"--out {out}")
    if out.exists():
        raise InputError(f"{out}: already exists; give --out a new directory")
    newest = newest_policy(directory)
    policy = newest if round is None else recorded_policy(directory, round)
    if newest is None or policy is None:
        reached = "no policy yet" if newest is None else f"policies of rounds 0 to {newest.round}"
        raise InputError(f"{run}: has {reached}; give one of those as --round")
    if not directory.checkpoint(policy.round).exists():
        fix_machine(directory, config)  # reconstruction gives the same weights only with the same arithmetic
    with Bar("reconstructing rounds", stderr=True) as bar:
        learner = reconstruct(directory, config, DrawReader(directory), policy, tick=bar.update)
    with learner.masters() if masters else nullcontext():
        export_policy(out, learner.model, tokenizer_of(config.model))
    digest = learner.content()
    if as_json:
        print_json({"run": directory.name, "round": policy.round, "policy_digest": digest, "out": str(out)})
    else:
        say(f"{out}: the policy after round {policy.round}, digest {digest}")


def show_prune(run: Path, yes: bool, as_json: bool) -> None:
    """Print what pruning a finished run deletes and, with `yes`, delete it."""
    from reval_core.maintenance.prune import plan, prune

    directory, config = _run(run)
    with directory.lock(), Bar("merging tables", stderr=True) as bar:
        found = plan(directory, config)
        before = _bytes(directory)
        if yes:
            prune(directory, config, bar.update)
        after = _bytes(directory)
    if as_json:
        print_json({**vars(found), "done": yes, "bytes_before": before, "bytes_after": after})
        return
    say(f"tokens of rounds 1 to {found.last_round}, all outside the buffer of {config.replay.capacity:,}:")
    say(f"  {found.files:,} files, {found.size / 1e6:,.1f} MB, are merged into one file per table, without tokens")
    say(f"  {found.leftovers:,} cached results and corrupt files, {found.leftovers_size / 1e6:,.1f} MB")
    say("texts, verdicts, scores, draws and checkpoints remain; policies between checkpoints become unavailable")
    if yes:
        say(f"done: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB now")
    else:
        say("nothing was changed; add --yes to do it")


def _bytes(directory: RunDirectory) -> int:
    """The size of the run directory without checkpoints and database."""
    parts = [*(directory.path / name for name in ("rollouts", "facts", "cache")), *directory.path.glob("pruned-*")]
    return sum(path.stat().st_size for part in parts for path in part.rglob("*") if path.is_file())


def _run(run: Path) -> tuple[RunDirectory, Config]:
    directory = existing_run(run)
    return directory, load_config(directory.config)
