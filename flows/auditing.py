"""`reval problems audit`: whether a set's golds and their rewritings are accepted, and wrong answers rejected."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reval.flows.named_inputs import named_set
from reval.flows.terminal import Bar, print_json, print_table, say, short
from reval_core.answers.extraction import Mode
from reval_core.auditing.audit import Audit, JudgedResponse, Suspicion, What, audit_set
from reval_core.config import ProblemSet
from reval_core.verification import Verifier

TIMEOUT_SECONDS = 10.0
"""Longer than in training: an audit tests the rules, not how busy the machine is."""

_SHOWN = 10
"""How many of the remaining cases are printed; `--json` has all."""
_SHOWN_CHARACTERS = 24
_WIDTH = 80
_TITLES: dict[What, str] = {
    "gold": "gold accepted",
    "rewriting": "rewritings accepted",
    "mutant": "mutants rejected",
}
_FAULTS: dict[What, str] = {
    "gold": "not accepted",
    "rewriting": "rewriting not accepted",
    "mutant": "mutant accepted",
}


def audit_file(
    file: Path,
    set_name: str | None,
    columns: Sequence[str],
    mode: Mode,
    sample: int | None,
    seed: int,
    workers: int | None,
    as_json: bool,
) -> None:
    """Audit the problems of a file or of a registered set, and print the result.

    Raises InputError if the file cannot be read as problems.
    """
    found = audit_source(named_set(file, set_name, columns), mode, sample, seed, workers)
    if as_json:
        print_json(_as_json(found))
    else:
        _show(found)


def audit_source(source: ProblemSet, mode: Mode, sample: int | None, seed: int, workers: int | None) -> Audit:
    """Audit a problem set with its own verifier, and show the progress."""
    verifier = Verifier(workers=workers or os.cpu_count() or 1, timeout_seconds=TIMEOUT_SECONDS, mode=mode)
    with verifier, Bar("problems", stderr=True) as bar:
        return audit_set(source, verifier, mode, sample, seed, bar.update)


def audit_line(found: Audit) -> str:
    """A one-line summary of an audit."""
    gold, rewriting, mutant = (_rate(found, what) for what in _TITLES)
    return f"audit of {found.problems:,}: gold accepted {gold}, rewritings {rewriting}, mutants rejected {mutant}"


def audit_counts(found: Audit) -> dict[str, Any]:
    """The counts and rates of an audit, as JSON."""
    return {
        _TITLES[what].replace(" ", "_"): {
            "of": tested,
            "count": passed,
            "rate": passed / tested if tested else None,
        }
        for what in _TITLES
        for tested, passed in [found.counts(what)]
    }


def _as_json(found: Audit) -> dict[str, Any]:
    return {
        "file": found.origin,
        "mode": found.mode,
        "problems": found.problems,
        "usable": found.usable,
        **audit_counts(found),
        "unjudged": found.unjudged,
        "kinds": [
            {"what": what, "kind": kind, "of": tested, "count": passed}
            for (what, kind), (tested, passed) in found.kinds.items()
        ],
        "suspicious": [asdict(one) for one in found.suspicious],
        "rest": [asdict(one) for one in found.rest],
    }


def _show(found: Audit) -> None:
    name = short(Path(found.origin))
    part = "" if found.problems == found.usable else f" of {found.usable:,}"
    say(f"{name}: {found.problems:,}{part} problems, {found.mode} mode")
    counted = [(title, *found.counts(what), _rate(found, what)) for what, title in _TITLES.items()]
    lines = [(title, f"{tested:,}", f"{passed:,}", rate) for title, tested, passed, rate in counted]
    print_table(["", "tested", "count", "share"], lines, width=_WIDTH)
    if found.unjudged:
        say(f"{found.unjudged:,} responses could not be judged (timeout, or a worker died): reward 0")
    _show_kinds(found)
    _show_suspicious(found)
    _show_rest(found)


def _rate(found: Audit, what: What) -> str:
    tested, passed = found.counts(what)
    if not tested:
        return "–"
    # Only an exact result is shown as 100%.
    return "100%" if passed == tested else f"{min(100 * passed / tested, 99.99):.4g}%"


def _show_kinds(found: Audit) -> None:
    failed = {kind: (tested, passed) for kind, (tested, passed) in found.kinds.items() if passed < tested}
    if not failed:
        return
    lines = [
        (_FAULTS[what], kind, f"{tested:,}", f"{tested - passed:,}")
        for (what, kind), (tested, passed) in sorted(failed.items(), key=lambda item: item[1][1] - item[1][0])
    ]
    print_table(["failure", "kind", "tested", "failed"], lines, right=(2, 3), width=_WIDTH)


def _show_suspicious(found: Audit) -> None:
    by_reason: dict[str, list[Suspicion]] = defaultdict(list)
    for one in found.suspicious:
        for reason in one.reasons:
            by_reason[reason].append(one)
    if not by_reason:
        return
    lines = []
    for reason, golds in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        places = ", ".join(one.place for one in golds[:3]) + (" …" if len(golds) > 3 else "")
        lines.append((reason, f"{len(golds):,}", places, ascii(golds[0].gold)[:_SHOWN_CHARACTERS]))
    print_table(["suspicious gold", "rows", "first", "its gold"], lines, right=(1,), width=_WIDTH)


def _show_rest(found: Audit) -> None:
    for what, fault in _FAULTS.items():
        rest = [one for one in found.rest if one.what == what]
        for one in _one_of_each_kind(rest)[:_SHOWN]:
            say(_line(f"{one.place}: gold {one.gold!a}: {fault}, {one.kind} ({one.verdict})"))
            say(_line(f"    {one.response!a}"))
        if len(rest) > _SHOWN:
            say(f"and {len(rest) - _SHOWN:,} more (--json lists all)")


def _one_of_each_kind(rest: Sequence[JudgedResponse]) -> list[JudgedResponse]:
    """The cases with the first of each kind in front."""
    first = {id(one) for one in {one.kind: one for one in reversed(rest)}.values()}
    return sorted(rest, key=lambda one: id(one) not in first)


def _line(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
