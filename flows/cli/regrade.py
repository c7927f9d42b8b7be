"""`reval regrade`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reval.flows.cli.options import AS_JSON, RUN
from reval.flows.terminal import Bar, print_json, print_table, say, short

if TYPE_CHECKING:
    from reval_core.regrading.changes import Change

_SHOWN_ROUNDS = 20
"""How many rounds are printed, those that changed most; `--json` has all."""
_WIDTH = 80
_EXAMPLES = 3
"""Examples per pair of verdicts."""


@click.command()
@RUN
@click.option("--mode", type=click.Choice(["strict", "lenient"]), help="Grading rules; default: the run's.")
@click.option("--methods", metavar="METHOD,…", help="Extraction methods, such as boxed,phrase.")
@click.option("--function", metavar="MODULE:NAME", help="A reward function to use instead of the rules.")
@click.option("--round", "rounds", type=click.IntRange(min=0), multiple=True, help="Only this round; default: all.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="New Parquet file; default: RUN-regraded.parquet next to RUN."
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
    """Grade RUN's stored responses under other rules.

    Shows which verdicts change, and the rewards that each round would have had. RUN may be in training, an import
    or an evaluation; it is not changed.
    """
    from reval_core.regrading.changes import changes, examples, verdict_changes
    from reval_core.regrading.regrade import (
        check_out,
        other_rules,
        regrade,
        stored_responses,
        write_regraded,
    )
    from reval_core.verification import Verifier

    stored = stored_responses(run, rounds)
    rules = other_rules(stored, mode, methods, function)
    out = out or stored.directory.path.with_name(f"{stored.directory.name}-regraded.parquet")
    check_out(stored, out)
    with Verifier.of(rules.verification, rules.reward) as verifier, Bar("responses", stderr=True) as bar:
        table = regrade(stored, rules, verifier, bar.update)
    write_regraded(out, table, stored, rules)
    by = "round" if stored.is_run else "problem_set"
    found = {
        "run": stored.directory.name,
        "out": str(out),
        "rules": rules.model_dump(mode="json"),
        "trajectories": len(table),
        "verdicts": [
            {"before": before, "now": now, "count": count}
            for (before, now), count in verdict_changes(table).items()
        ],
        "examples": examples(table, _EXAMPLES),
    }
    parts = changes(table, by)
    if as_json:
        print_json({**found, f"{by}s": [{by: one.part, **_metrics(one)} for one in parts]})
    else:
        _show(found, parts, by.replace("_", " "))


def _metrics(change: Change) -> dict[str, Any]:
    return {name: value for name, value in asdict(change).items() if name != "part"}


def _show(found: dict[str, Any], parts: Sequence[Change], by: str) -> None:
    changed = sum(one.changed for one in parts)
    say(
        f"{found['run']}: {found['trajectories']:,} responses, {changed:,} change their verdict "
        f"({changed / found['trajectories']:.1%})"
    )
    lines = [
        (pair["before"], "the same" if pair["before"] == pair["now"] else pair["now"], f"{pair['count']:,}")
        for pair in found["verdicts"]
    ]
    print_table(["verdict before", "now", "count"], lines, right=(2,), width=_WIDTH)
    _show_parts(parts, by)
    for one in found["examples"]:
        what = f"{one['verdict_before']} -> {one['verdict']}, gold {one['gold']!a}"
        say(_line(f"trajectory {one['trajectory_id']}: {what}"))
        say(_line(f"    extracted {one['extracted_before']!a} -> {one['extracted']!a}"))
    say(f"written: {short(Path(found['out']))} (joins with the run's tables on trajectory_id)")


def _show_parts(parts: Sequence[Change], by: str) -> None:
    most = sorted(parts, key=lambda one: -one.changed)[:_SHOWN_ROUNDS]
    names = [by, "responses", "changed", "accuracy", "mean reward", "groups affected"]
    lines = [
        (
            one.part,
            f"{one.trajectories:,}",
            f"{one.changed / one.trajectories:.1%}",
            f"{one.accuracy_before:.1%} → {one.accuracy:.1%}",
            f"{_number(one.reward_before)} → {_number(one.reward)}",
            f"{one.groups_turned:,}/{one.groups:,}",
        )
        for one in parts
        if one in most
    ]
    print_table(names, lines, width=_WIDTH)
    say("groups affected: some reward is now on the other side of the group's mean")
    if len(parts) > len(most):
        say(f"the {len(most)} {by}s of {len(parts):,} that changed most (--json lists all)")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _line(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
