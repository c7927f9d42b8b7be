"""`reval problems`: lists the registered problem sets, and checks a file of problems."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reval.flows.auditing import audit_counts, audit_line, audit_source
from reval.flows.problem_sources import named_set
from reval.flows.terminal import print_json, print_table, say, short
from reval_core.auditing.audit import Audit
from reval_core.problems.checking import Check, check_set, known_tests
from reval_core.problems.registered import REGISTERED, VARIABLE, directories, find_set
from reval_core.rows import read_rows

_WIDTH = 80
_SHOWN = 10
"""How many overlaps are printed; `--json` has all."""
_AUDITED = 20
"""How many problems a check audits; it should take seconds."""


def list_sets(as_json: bool) -> None:
    """Print the registered sets with the files found for them and their numbers of rows."""
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


def check_file(
    file: Path, set_name: str | None, columns: Sequence[str], against: Sequence[str], as_json: bool
) -> None:
    """Print a summary of a file of problems. Exits with 1 if rows must be fixed or dropped before training on it.

    Raises InputError if the file cannot be read as problems.
    """
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
