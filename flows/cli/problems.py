"""`reval problems`: list, check and audit problem sets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reval.flows.cli.options import AS_JSON, WORKERS, column, mode
from reval.flows.terminal import print_json, print_table, say, short

if TYPE_CHECKING:
    from reval_core.answers.extraction import Mode
    from reval_core.auditing.audit import Audit
    from reval_core.problems.checking import Check

_WIDTH = 80
_SHOWN = 10
"""How many overlaps are printed; `--json` has all."""
_AUDITED = 20
"""How many problems a check audits; it should take seconds."""

_SET = click.option("--set", "set_name", metavar="NAME", help="The registered set that FILE contains.")
_COLUMN = column("problem, answer, prompt_id or options", "answer=solution")


@click.group()
def problems() -> None:
    """List, check and audit problem sets."""


@problems.command("list")
@AS_JSON
def list_problems(as_json: bool) -> None:
    """List the registered problem sets and where they were found."""
    from reval_core.problems.registered import REGISTERED, VARIABLE, directories, find_set
    from reval_core.rows import read_rows

    found: list[dict[str, Any]] = []
    for name, one in REGISTERED.items():
        path = find_set(name)
        rows = len(read_rows(path)) if path is not None else None
        size = one.sizes[0] if one.sizes else None
        found.append(
            {"set": name, "title": one.title, "split": one.split, "size": size, "hub": one.hub.name}
            | {"file": path and str(path), "rows": rows}
            | {"whole": rows in one.sizes if rows is not None and size is not None else None}
        )
    if as_json:
        print_json(found)
        return
    lines = []
    for row in found:
        full, here = ("–" if number is None else f"{number:,}" for number in (row["size"], row["rows"]))
        here += " (partial)" if row["whole"] is False else ""
        lines.append((row["set"], row["split"], full, here, Path(row["file"]).name if row["file"] else ""))
    print_table(["set", "split", "size", "here", "file"], lines, right=(2, 3), width=_WIDTH)
    searched = ", ".join(short(directory.absolute()) for directory in directories())
    say(f"Searched {searched}.\nSet {VARIABLE} for other directories; how to get each set: docs/problems.md")


@problems.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@_SET
@_COLUMN
@click.option(
    "--against",
    multiple=True,
    metavar="NAME_OR_FILE",
    help="A test set to compare with; default: all registered ones that are found.",
)
@AS_JSON
def check_problems(
    file: Path, set_name: str | None, columns: tuple[str, ...], against: tuple[str, ...], as_json: bool
) -> None:
    """Report rows of FILE that need attention.

    Also lists its overlap with test sets. Exits with 1 if rows must be fixed or left out before training on it.
    """
    from reval.flows.auditing import audit_counts, audit_source
    from reval.flows.named_inputs import named_set
    from reval_core.problems.checking import check_set, known_tests

    source = named_set(file, set_name, columns)
    tests, left_out = known_tests(against)
    check = check_set(source, tests)
    audit = audit_source(source, "strict", _AUDITED, seed=0, workers=1)
    if as_json:
        print_json({**_as_json(check, left_out), "audit": audit_counts(audit)})
    else:
        _show(check, left_out, audit)
    if not check.trainable:
        sys.exit(1)


@problems.command("audit")
@click.argument("file", type=click.Path(path_type=Path))
@_SET
@_COLUMN
@mode("strict")
@click.option("--sample", type=click.IntRange(min=1), help="Audit only this many problems, chosen by the seed.")
@click.option("--seed", default=0, show_default=True, help="The seed of mutants and of the sample.")
@WORKERS
@AS_JSON
def audit_problems(
    file: Path,
    set_name: str | None,
    columns: tuple[str, ...],
    mode: Mode,
    sample: int | None,
    seed: int,
    workers: int | None,
    as_json: bool,
) -> None:
    """Test the verifier on each gold in FILE.

    FILE is a file of problems or the name of a registered set. The gold and its rewritten forms must be accepted,
    wrong answers derived from it must not. Suspicious golds are listed with their lines. The exit code is 0
    whatever is found.
    """
    from reval.flows.auditing import audit_file

    audit_file(file, set_name, columns, mode, sample, seed, workers, as_json)


def _as_json(check: Check, left_out: Mapping[str, str]) -> dict[str, Any]:
    return {
        "file": check.origin,
        "rows": check.rows,
        "faults": check.faults,
        "notes": check.notes,
        "golds": check.kinds,
        "characters": dict(zip(("shortest", "median", "longest"), check.lengths, strict=True)),
        "compared_with": check.tests,
        "left_out": left_out,
        "copy_of": check.copies,
        "overlaps": [
            {"prompt_id": one.train.prompt_id, "test_set": one.test.problem_set, "test_id": one.test.prompt_id}
            | {"shared": one.shared or None}
            for one in check.overlaps
        ],
        "trainable": check.trainable,
    }


def _show(check: Check, left_out: Mapping[str, str], audit: Audit) -> None:
    usable = check.rows - sum(map(len, check.faults.values()))
    say(f"{short(Path(check.origin))}: {check.rows:,} rows, {usable:,} problems")
    if check.faults or check.notes:
        lines = []
        for kinds in (check.faults, check.notes):
            for kind, places in sorted(kinds.items(), key=lambda item: -len(item[1])):
                first = ", ".join(places[:3]) + (" …" if len(places) > 3 else "")
                name = ("cannot be used: " if kinds is check.faults else "") + kind
                lines.append((name, f"{len(places):,}", first))
        print_table(["issue", "rows", "first"], lines, right=(1,), width=_WIDTH)
    if check.kinds:
        say("golds: " + ", ".join(f"{count:,} {kind}" for kind, count in check.kinds.items()))
    shortest, median, longest = (f"{length:,}" for length in check.lengths)
    say(f"problems: {shortest} to {longest} characters, median {median}")
    for name, why in left_out.items():
        say(f"not compared with {name}: {why.partition(';')[0]}")
    if audit.problems:
        from reval.flows.auditing import audit_line

        say(audit_line(audit))
    _show_overlaps(check)
    say(_verdict(check))


def _show_overlaps(check: Check) -> None:
    for name in check.copies:
        say(f"contains exactly the problems of {name} and is not compared with it")
    if not check.tests and not check.copies:
        say("not compared with any test set: no complete one was found (reval problems list)")
    if not check.tests:
        return
    lines = []
    for name, size in check.tests.items():
        mine = [one for one in check.overlaps if one.test.problem_set == name]
        by_text = {one.train.prompt_id for one in mine if not one.shared}
        rows = {one.train.prompt_id for one in mine}
        lines.append((name, f"{size:,}", f"{len(rows):,}", f"{len(by_text):,}", f"{len(rows - by_text):,}"))
    print_table(["test set", "size", "rows", "by text", "by 13 words"], lines, width=_WIDTH)
    for one in sorted(check.overlaps, key=lambda one: one.shared != "")[:_SHOWN]:
        say(_cut(f"{one.train.prompt_id} is in {one.test.problem_set}: {one.test.prompt_id}"))
        say(_cut(f"    {one.shared}" if one.shared else "    the same text"))
    if len(check.overlaps) > _SHOWN:
        say(f"and {len(check.overlaps) - _SHOWN:,} more (--json lists all)")
    say()


def _verdict(check: Check) -> str:
    if check.trainable:
        return "Ready for training."
    must = []
    if check.faults:
        count = sum(map(len, check.faults.values()))
        must.append(f"fix {count:,} rows, or leave them out with unusable: drop")
    if check.overlaps:
        must.append(f"leave out {len(check.overlapping):,} overlapping rows with problems.contaminated: drop")
    return "Before training on it:\n  " + "\n  ".join(must)


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
